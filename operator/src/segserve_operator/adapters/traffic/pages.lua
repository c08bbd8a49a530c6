-- Lets web pages call the gateway (CORS): those of ORIGINS, a line each, and those of this machine if IS_LOCAL. Envoy's own
-- filter knows no policy of an answer that is not a cluster's, as that to a preflight request is.
-- NOTED is the namespace of the dynamic metadata that has the origin of such a page.

local HOSTS = {["localhost"] = true, ["127.0.0.1"] = true, ["[::1]"] = true}
local REQUEST_HEADERS = "authorization, x-api-key, content-type, inference-header-content-length, x-request-id, "
  .. "x-segserve-slice"
local ANSWER_HEADERS = "inference-header-content-length, x-request-id, x-segserve-revision, x-segserve-group"

local function is_allowed(origin)
  if string.find(ORIGINS, "\n" .. origin .. "\n", 1, true) then return true end
  local host = string.match(string.sub(origin, 1, 64), "^https?://(.+)$")
  return IS_LOCAL and host ~= nil and HOSTS[(string.gsub(host, ":%d+$", "", 1))] ~= nil
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local origin = headers:get("origin")
  if origin == nil or not is_allowed(origin) then return end
  handle:streamInfo():dynamicMetadata():set(NOTED, "origin", origin)
  if headers:get(":method") == "OPTIONS" and headers:get("access-control-request-method") ~= nil then
    handle:respond({
      [":status"] = "204", ["access-control-allow-methods"] = "GET, POST",
      ["access-control-allow-headers"] = REQUEST_HEADERS, ["access-control-max-age"] = "600",
    }, "")
  end
end

function envoy_on_response(handle)
  local noted = handle:streamInfo():dynamicMetadata():get(NOTED)
  if noted == nil then return end
  local headers = handle:headers()
  headers:replace("access-control-allow-origin", noted["origin"])
  headers:replace("access-control-expose-headers", ANSWER_HEADERS)
  headers:add("vary", "origin")
end
