-- Refuses inference requests that end Triton (2.51) or a step, whose callers' fault would be the revision's:
--   the parameter `classification`, if an output has strings
--   an input's shape of more elements than the request has bytes, negative sizes included
--   deeply nested JSON, and JSON that is too long to be read here
-- A request is whole when it comes here. Of JSON every byte is read, of a message its keys and lengths, shapes, and
-- outputs.

local INFER = "/inference.GRPCInferenceService/ModelInfer"
local LENGTH = "inference-header-content-length"
local MOST_DEPTH = 32
local MOST_JSON = 4194304  -- reading it blocks the thread for up to 40 ms a MiB
local QUOTE, BACKSLASH, COLON = string.byte('"\\:', 1, 3)
local OPENS = {[string.byte("[")] = true, [string.byte("{")] = true}
local CLOSES = {[string.byte("]")] = true, [string.byte("}")] = true}
local CLASSIFICATION = "the parameter 'classification' of an output is not supported"
local NO_MESSAGE = "the message is not a ModelInferRequest"
local SHAPE = "an input's 'shape' has more elements than the request has bytes"
local HEAD_BYTES, MAX_VARINT_BYTES, MAX_KEY, MAX_FIELDS = 5, 10, 2 ^ 32 - 1, 4096
local INPUTS, OUTPUTS, DIMENSIONS = 5, 6, 3  -- fields of a ModelInferRequest, and of an input of it
local VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5  -- types of fields

-- Returns what is wrong with the value of a name in JSON that begins at `at`.
local function wrong_value(text, name, at, bytes)
  if name == "classification" then return CLASSIFICATION end
  if name ~= "shape" then return nil end
  local elements = 1
  local sizes = string.match(text, "^%s*%[([%d%s,]*)%]", at) or ""  -- Triton refuses any other
  for size in string.gmatch(sizes, "%d+") do
    elements = elements * tonumber(size)
    if tonumber(size) > bytes or elements > bytes then return SHAPE end
  end
end

-- Returns what is wrong with a request's JSON, nil if nothing is that could end a server.
local function wrong_json(text, bytes)
  local at, depth, size = 1, 0, #text
  while at <= size do
    local byte = string.byte(text, at)
    if byte == QUOTE then
      local start, is_escaped = at + 1, false
      repeat
        at = at + 1
        byte = string.byte(text, at)
        if byte == BACKSLASH then at, is_escaped = at + 1, true end
      until byte == QUOTE or byte == nil
      local after = string.find(text, "%S", at + 1)
      if after ~= nil and string.byte(text, after) == COLON then
        if is_escaped then return "the names of the JSON must be without escapes" end
        local name = at - start <= #"classification" and string.sub(text, start, at - 1)
        local wrong = wrong_value(text, name, after + 1, bytes)
        if wrong ~= nil then return wrong end
      end
    elseif OPENS[byte] then
      depth = depth + 1
      if depth > MOST_DEPTH then return "the JSON is nested more than " .. MOST_DEPTH .. " deep" end
    elseif CLOSES[byte] then
      depth = depth - 1
    end
    at = at + 1
  end
end

-- Returns a number of a message and the position after it, nil if there is none.
local function varint(body, at)
  local value, scale = 0, 1
  local text = body:getBytes(at, math.min(MAX_VARINT_BYTES, body:length() - at))
  for index = 1, #text do
    local byte = string.byte(text, index)
    value, scale = value + (byte % 128) * scale, scale * 128
    if byte < 128 then return value, at + index end
  end
end

-- Calls `visit` with number, type, start and end of each field of a message from `at` to `stop`, until it returns
-- something, and returns that; what is wrong with the message, if it is none.
local function walk(body, at, stop, visit)
  local fields = 0
  while at < stop do
    local key, start, size
    key, start = varint(body, at)
    fields = fields + 1
    if key == nil or key > MAX_KEY or fields > MAX_FIELDS then return NO_MESSAGE end
    local kind = key % 8
    if kind == BYTES then
      size, start = varint(body, start)
      at = size and start + size
    elseif kind == VARINT then
      at = select(2, varint(body, start))
    else
      at = kind == FIXED_64 and start + 8 or kind == FIXED_32 and start + 4 or nil
    end
    if at == nil or at > stop then return NO_MESSAGE end
    local found = visit(math.floor(key / 8), kind, start, at)
    if found ~= nil then return found end
  end
end

-- Returns what is wrong with the shape of an input; a negative size is a number of 64 bits here.
local function wrong_input(body, at, stop)
  local elements, bytes = 1, body:length()
  return walk(body, at, stop, function(number, _, start, last)
    if number ~= DIMENSIONS then return nil end
    while start < last do
      local size
      size, start = varint(body, start)
      if size == nil then return NO_MESSAGE end
      elements = elements * size
      if size > bytes or elements > bytes then return SHAPE end
    end
  end)
end

-- Returns what is wrong with a message, nil if nothing is that could end a server.
local function wrong_message(body)
  return walk(body, HEAD_BYTES, body:length(), function(number, kind, start, last)
    if kind ~= BYTES then return nil end
    if number == INPUTS then return wrong_input(body, start, last) end
    if number == OUTPUTS and string.find(body:getBytes(start, last - start), "classification", 1, true) then
      return CLASSIFICATION
    end
  end)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = string.match(headers:get(":path") or "", "^[^?]*")
  local wrong
  if path == INFER then
    local body = handle:body()
    wrong = body ~= nil and wrong_message(body) or nil
  elseif string.sub(path, 1, 11) == "/v2/models/" and string.sub(path, -6) == "/infer" then
    local stated = headers:get(LENGTH)
    if stated ~= nil and (headers:getNumValues(LENGTH) > 1 or not string.find(stated, "^%d+$")) then
      handle:respond({[":status"] = "400"}, "the header Inference-Header-Content-Length must be one number")
    end
    local body = handle:body()
    if body == nil then return end
    local length = stated and tonumber(stated) or body:length()
    if length == 0 or length > body:length() then return end  -- no JSON, or none that Triton reads
    if length > MOST_JSON then
      handle:respond(
        {[":status"] = "400"}, "the request's JSON has more than " .. MOST_JSON .. " bytes: send tensors as binary data"
      )
    end
    wrong = wrong_json(body:getBytes(0, length), body:length())
  end
  if wrong ~= nil then handle:respond({[":status"] = "400"}, wrong) end
end
