-- Writes into x-segserve-route what a request asks for: the key of one entry in the table of routes.
--   http:infer:<model>, grpc:infer:<model>   an inference
--   http:about:<model>, grpc:about:<model>   metadata, configuration, readiness, statistics
--   <path>                                   a question about the server; any other path has no entry
-- x-segserve-model is the name for the error message where the table has no such entry; the dynamic metadata NOTED,
-- unless that is empty, has it for the access log and spans.
-- Where the request names a group, which it can at the internal listener only, the key is the name of the cluster:
--   <model>/<group>/aside/http, <model>/<group>/aside/grpc

local EXTRACTION = "envoy.filters.http.grpc_field_extraction"
local SERVICE = "/inference.GRPCInferenceService/"
local KIND_BY_PATH = {[""] = "about", ["/infer"] = "infer", ["/ready"] = "about", ["/config"] = "about", ["/stats"] = "about"}
local KIND_BY_METHOD = {
  ModelInfer = "infer", ModelReady = "about", ModelMetadata = "about", ModelConfig = "about", ModelStatistics = "about",
}

local function http_target(path)
  local model, rest = string.match(path, "^/v2/models/([^/]+)(.*)$")
  if model == nil or path == "/v2/models/stats" then return nil end
  if rest ~= "/infer" then rest = string.gsub(rest, "^/versions/%d+", "", 1) end
  return KIND_BY_PATH[rest], model
end

local function grpc_target(handle, method)
  local kind = KIND_BY_METHOD[method]
  if kind == nil then return nil end
  local found = handle:streamInfo():dynamicMetadata():get(EXTRACTION)
  local names = found and (found["model_name"] or found["name"])
  local model = names and names[1] or ""  -- an empty name gives an empty list
  if model == "" and method == "ModelStatistics" then return nil end  -- of all models
  return kind, model
end

local function shown(text)
  return (string.gsub(string.sub(text, 1, 80), "[^%w%._-]", "?"))
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path") or ""
  local encoding = headers:get("content-encoding")
  -- gzip alone has been undone by now. The local replies give the text the form of the protocol.
  if encoding ~= nil and encoding ~= "identity" then
    handle:respond(
      {[":status"] = "415"}, "a body encoded as '" .. shown(encoding) .. "' is not supported; allowed is gzip, once"
    )
  end
  local query = string.find(path, "?", 1, true)
  if query ~= nil then path = string.sub(path, 1, query - 1) end
  local protocol, kind, model
  local group = headers:get("x-segserve-group")
  if string.sub(path, 1, #SERVICE) == SERVICE then
    protocol = "grpc"
    kind, model = grpc_target(handle, string.sub(path, #SERVICE + 1))
  else
    protocol = "http"
    kind, model = http_target(path)
  end
  if kind ~= nil then
    headers:replace("x-segserve-model", shown(model))
    if NOTED ~= "" then handle:streamInfo():dynamicMetadata():set(NOTED, "model", shown(model)) end
    if group ~= nil then
      headers:replace("x-segserve-group", shown(group))
      headers:replace("x-segserve-route", model .. "/" .. shown(group) .. "/aside/" .. protocol)
    else
      headers:replace("x-segserve-route", protocol .. ":" .. kind .. ":" .. model)
    end
  else
    headers:replace("x-segserve-route", path)
  end
  handle:clearRouteCache()  -- the route was chosen before the name was known
end
