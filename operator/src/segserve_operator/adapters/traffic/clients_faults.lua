-- Turns what Triton calls a fault of its own, and is its caller's, into 400: it is neither asked again nor evidence.

-- What Triton says of a body that it cannot read; it sends that as a fault of its own.
local UNREADABLE = {"failed to parse the request JSON", "Unable to parse "}

function envoy_on_response(handle)
  if handle:headers():get(":status") ~= "500" then return end
  local body = handle:body()
  if body == nil then return end
  local text = body:getBytes(0, math.min(body:length(), 200))
  for _, said in ipairs(UNREADABLE) do
    -- Headers that were taken before the wait for the body are void after it.
    if string.find(text, said, 1, true) then handle:headers():replace(":status", "400") end
  end
end
