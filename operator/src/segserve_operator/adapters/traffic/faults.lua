-- Corrects whose fault Triton says that an error is, of each attempt, before it is counted or asked again:
--   a body that cannot be read, or a stream's name that is too long, is the caller's: 400, INVALID_ARGUMENT
--   a model that the server has not loaded, or no longer, is the server's, as the gateway knows the model: 503, UNAVAILABLE
--   an image that a server does not compute, because others of its size take all places, is one too many: 429,
--   RESOURCE_EXHAUSTED
-- What another server may answer has the header retry-after, by which the table of routes asks one, and callers do.

local UNREADABLE = {
  "failed to parse the request JSON", "Unable to parse ", "failed to get request params", "string correlation ID cannot be",
}
local UNREADABLE_MESSAGE = "Unable to parse request"  -- of the library for gRPC
-- Of a version, which is the caller's choice, it says "'coins' version 7 is not found".
local UNLOADED = {"' is not found", "' has no available versions"}
local ENDING = "Server is stopping"
local NOT_LOADED = "no server that was asked has the model loaded; try again"

local function says(text, messages)
  for _, message in ipairs(messages) do
    if string.find(text, message, 1, true) then return true end
  end
  return false
end

local function correct_grpc(headers)
  local message = headers:get("grpc-message") or ""
  if headers:get("grpc-status") == "13" and message == UNREADABLE_MESSAGE then headers:replace("grpc-status", "3") end
  if headers:get("grpc-status") == "14" and string.find(message, BUSY, 1, true) then headers:replace("grpc-status", "8") end
  local unloaded = headers:get("grpc-status") == "5" and says(message, UNLOADED)
  if unloaded then
    headers:replace("grpc-status", "14")
    headers:replace("grpc-message", NOT_LOADED)
  end
  if unloaded or string.find(message, ENDING, 1, true) then
    headers:replace("retry-after", RESTART_S)
    headers:replace("grpc-retry-pushback-ms", RESTART_S .. "000")
  end
end

function envoy_on_response(handle)
  local status = handle:headers():get(":status")
  if status == "200" then return correct_grpc(handle:headers()) end
  if status ~= "500" and status ~= "501" and status ~= "503" and status ~= "404" then return end
  local body = handle:body()
  if body == nil then return end
  local text = body:getBytes(0, math.min(body:length(), 200))
  -- Headers that were taken before the wait for the body are void after it.
  local headers = handle:headers()
  if status == "503" then
    if string.find(text, BUSY, 1, true) then headers:replace(":status", "429") end
  elseif status ~= "404" and says(text, UNREADABLE) then
    headers:replace(":status", "400")
  elseif status == "404" and says(text, UNLOADED) then
    headers:replace(":status", "503")
    headers:replace("retry-after", RESTART_S)
    headers:replace("content-length", body:setBytes('{"error":"' .. NOT_LOADED .. '"}'))
  end
end
