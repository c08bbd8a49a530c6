-- Removes the headers of a request that no server reads, and refuses a request whose other ones are too long for it.
-- Triton ends the connection of a request with more than 8 KiB of headers, and refuses one with as much metadata: what a
-- caller sent would count as its revision's failure. A caller's deadline (grpc-timeout) would count as well: it ends the
-- call at the gateway, which counts it as left by its caller.

local ALLOWED = {
  ["accept"] = true, ["accept-encoding"] = true, ["baggage"] = true, ["content-length"] = true, ["content-type"] = true,
  ["inference-header-content-length"] = true, ["te"] = true, ["traceparent"] = true, ["tracestate"] = true,
  ["transfer-encoding"] = true, ["user-agent"] = true, ["x-request-id"] = true,
  ["x-forwarded-proto"] = true,  -- without it Envoy finds no route
}
local OURS = "x-segserve-"
local MOST_BYTES = 7168  -- 1 KiB is left for what the gateway adds
local HEADER_BYTES = 32  -- of each beside its name and value, as HTTP/2 counts (RFC 9113, 6.5.2)

function envoy_on_request(handle)
  local headers, removed, bytes = handle:headers(), {}, 0
  for name, value in pairs(headers) do
    if ALLOWED[name] or string.byte(name) == 58 or string.sub(name, 1, #OURS) == OURS then
      bytes = bytes + #name + #value + HEADER_BYTES
    else
      table.insert(removed, name)
    end
  end
  for _, name in ipairs(removed) do headers:remove(name) end
  if bytes > MOST_BYTES then
    handle:respond(
      {[":status"] = "431"}, "path and headers have " .. bytes .. " bytes; at most " .. MOST_BYTES .. " go to a server"
    )
  end
end
