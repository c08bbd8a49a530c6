-- Writes the id of a request, if it has one, into two headers, after the filter that finds the request's route:
--   x-segserve-id     the id and the model: its hash chooses a server
--   x-segserve-part   a number that the id, the model and the rollout give: it chooses a revision
-- A stream's id comes first, then the header HEADER, the cookie COOKIE and the caller's name (where CALLER is true).

local MAX_ID_BYTES = 512  -- as many as may be hashed

local function times(value, factor)
  local low, high = bit.band(value, 0xffff), bit.rshift(value, 16)
  local factor_low, factor_high = factor % 0x10000, math.floor(factor / 0x10000)
  return bit.tobit(low * factor_low + (high * factor_low + low * factor_high) % 0x10000 * 0x10000)
end

-- 32 bits of FNV-1a, and the finish of MurmurHash3, without which similar ids are close together.
local function hash(text)
  local value = bit.tobit(0x811c9dc5)
  for index = 1, #text do value = times(bit.bxor(value, string.byte(text, index)), 0x01000193) end
  value = times(bit.bxor(value, bit.rshift(value, 16)), 0x85ebca6b)
  value = times(bit.bxor(value, bit.rshift(value, 13)), 0xc2b2ae35)
  return bit.bxor(value, bit.rshift(value, 16)) % 2 ^ 32
end

local function cookie(headers)
  for index = 0, headers:getNumValues("cookie") - 1 do
    -- Pair by pair: a pattern for all of a header that names nothing would begin anew at each of its bytes.
    for pair in string.gmatch(headers:getAtIndex("cookie", index), "[^;]+") do
      local name, value = string.match(pair, "^%s*([^%s=]+)=(.*)$")
      if name == COOKIE then return "cookie:" .. value end
    end
  end
end

local function caller(handle)
  local known = handle:streamInfo():dynamicMetadata():get("segserve.caller")
  return known and known["name"]
end

local function id_of(handle, headers)
  local stream = headers:get("x-sequence-id")
  if stream ~= nil and stream ~= "" then return "stream:" .. stream end
  local value = HEADER ~= "" and headers:get(HEADER) or nil
  if value ~= nil and value ~= "" then return "header:" .. value end
  return COOKIE ~= "" and cookie(headers) or CALLER and caller(handle) or nil
end

function envoy_on_request(handle)
  local salt = handle:metadata():get("salt")
  if salt == nil then return end  -- not a request that is split
  local headers = handle:headers()
  local id = id_of(handle, headers)
  if id == nil then return end
  id = string.sub(id, 1, MAX_ID_BYTES) .. "|" .. headers:get("x-segserve-model")
  headers:replace("x-segserve-id", id)
  headers:replace("x-segserve-part", string.format("%.0f", hash(id .. "|" .. salt)))
  handle:clearRouteCache()  -- the revision was chosen at random
end
