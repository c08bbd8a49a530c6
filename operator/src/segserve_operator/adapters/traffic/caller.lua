-- Writes into the dynamic metadata segserve.caller who calls, after the filters that check credentials:
--   name          token:<name>, key:<name> or certificate:<name>, of the first of these that there is; absent for nobody
--   id            the same for servers, with a token's issuer; what is no printable ASCII is written as %XX
--   key           the caller whose API key was right
--   certificate   the name in the caller's certificate
-- The claims of a token are in the metadata of the filter that checked it. No credential goes on to a server.

local CALLER = "segserve.caller"
local TOKENS = "envoy.filters.http.jwt_authn"
local SECRETS = {
  "authorization", "proxy-authorization", "x-api-key", "x-segserve-key", "x-segserve-key-user", "x-segserve-token-name",
}

local function escaped(text, pattern)
  local found = string.gsub(text, pattern, function(byte) return string.format("%%%02X", string.byte(byte)) end)
  return found
end

local function certificate_of(handle)
  local tls = handle:streamInfo():downstreamSslConnection()
  if tls == nil or not tls:peerCertificateValidated() then return nil end
  return tls:uriSanPeerCertificate()[1] or tls:dnsSansPeerCertificate()[1] or tls:subjectPeerCertificate()
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local metadata = handle:streamInfo():dynamicMetadata()
  if headers:getNumValues("x-api-key") > 1 then
    -- The filter has checked one of them.
    handle:respond({[":status"] = "401"}, "more than one API key was sent")
    return
  end
  local name, id
  local certificate = certificate_of(handle)
  if certificate ~= nil and certificate ~= "" then
    metadata:set(CALLER, "certificate", certificate)
    name = "certificate:" .. certificate
  end
  local user = headers:get("x-segserve-key-user")
  if user ~= nil then
    local key = string.match(user, "^[^+]*")
    metadata:set(CALLER, "key", key)
    name = "key:" .. key
  end
  id = name
  local tokens = metadata:get(TOKENS)
  if tokens ~= nil then
    local token = headers:get("x-segserve-token-name") or ""
    name, id = "token:" .. token, "token:" .. tostring(tokens["claims"]["iss"]) .. "|" .. token
  end
  if name ~= nil then
    metadata:set(CALLER, "name", escaped(name, "%c"))
    metadata:set(CALLER, "id", escaped(id, "[^ -$&-~]"))
  end
  for _, secret in ipairs(SECRETS) do headers:remove(secret) end
end
