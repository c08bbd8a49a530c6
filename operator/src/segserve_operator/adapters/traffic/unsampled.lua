-- Removes the trace context of a request that is not sampled, or that is none, on its way to a server.

function envoy_on_request(handle)
  local headers = handle:headers()
  -- The last field has the flags; the lowest bit says whether the request is sampled.
  local digit = string.match(headers:get("traceparent") or "", "^%x+%-%x+%-%x+%-%x(%x)$")
  if digit == nil or tonumber(digit, 16) % 2 == 0 then headers:remove("traceparent") end
end
