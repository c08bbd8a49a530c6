-- A stand-in for what Envoy gives a script: headers, bodies and metadata, as plain tables.

local Headers = {}
Headers.__index = Headers
function Headers:get(name) return self.values[name] end
function Headers:getNumValues(name) return self.values[name] and 1 or 0 end
function Headers:getAtIndex(name) return self.values[name] end
function Headers:replace(name, value) self.values[name] = value end
Headers.add = Headers.replace
function Headers:remove(name) self.values[name] = nil end
function Headers.__pairs(headers) return next, headers.values, nil end

local Metadata = {}
Metadata.__index = Metadata
function Metadata:get(name) return self[name] end
function Metadata:set(space, name, value)
  self[space] = self[space] or {}
  self[space][name] = value
end

local Body = {}
Body.__index = Body
function Body:length() return #self.text end
function Body:getBytes(from, count) return string.sub(self.text, from + 1, from + count) end
function Body:setBytes(text)
  self.text = text
  return #text
end

local Handle = {}
Handle.__index = Handle
function Handle:headers() return self.sent end
function Handle:metadata() return setmetatable(self.route, Metadata) end
function Handle:dynamicMetadata() return setmetatable(self.noted, Metadata) end
function Handle:downstreamSslConnection() return nil end
Handle.streamInfo = function(self) return self end
function Handle:body() return self.whole end
function Handle:bodyChunks()
  local text, at = self.whole.text, 1
  return function()
    if at > #text then return nil end
    local chunk = setmetatable({text = string.sub(text, at, at + 16383)}, Body)
    at = at + 16384
    return chunk
  end
end
function Handle:base64Escape(text) return text end
function Handle:clearRouteCache() end
function Handle:timestamp() return 0 end
function Handle:logErr(text) error(text) end
function Handle:respond(_, reason) error("refused: " .. reason, 0) end

function handle_of(headers, body, noted, route)
  local sent = setmetatable({values = headers}, Headers)
  return setmetatable({sent = sent, whole = setmetatable({text = body}, Body), noted = noted, route = route}, Handle)
end
