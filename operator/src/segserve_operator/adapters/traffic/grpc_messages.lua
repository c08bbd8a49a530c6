-- Refuses a message of gRPC that ends Triton (2.51) or a step, whose caller's fault would be the revision's:
--   the parameter `classification`, if an output has strings
--   an input's shape of more elements than the request has bytes, negative sizes included
-- and one of more fields than a request needs, over each of which the filter for the model's name would go as well. The
-- message is whole when it comes here.

local INFER = "/inference.GRPCInferenceService/ModelInfer"
local MAX_DIMENSIONS, MAX_FIELDS, MAX_OUTPUT_BYTES = 8, 1024, 4096
local CLASSIFICATION = "the parameter 'classification' of an output is not supported"
local NO_MESSAGE = "the message is not a ModelInferRequest"
local SHAPE = "an input's 'shape' has more elements than the request has bytes"
local DIMENSIONS_TOO_MANY = "an input's 'shape' has more than " .. MAX_DIMENSIONS .. " dimensions"
local HEAD_BYTES, MAX_VARINT_BYTES, MAX_KEY, PIECE_BYTES = 5, 10, 2 ^ 32 - 1, 256
local INPUTS, OUTPUTS, DIMENSIONS = 5, 6, 3  -- fields of a ModelInferRequest, and of an input of it
local VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5  -- types of fields

-- Returns a function that returns the byte of a body at a position, nil beyond its end, and one that returns a number
-- of a message there and the position after it. Each `getBytes` walks over the buffers of a body: it is called for a
-- piece, not for a number.
local function reader(body)
  local piece, from, length = "", 0, body:length()
  local function byte_at(at)
    if at >= length then return nil end
    if at < from or at >= from + #piece then
      piece, from = body:getBytes(at, math.min(PIECE_BYTES, length - at)), at
    end
    return string.byte(piece, at - from + 1)
  end
  return function(at)
    local value, scale = 0, 1
    for index = at, at + MAX_VARINT_BYTES - 1 do
      local byte = byte_at(index)
      if byte == nil then return nil end
      value, scale = value + (byte % 128) * scale, scale * 128
      if byte < 128 then return value, index + 1 end
    end
  end
end

-- Returns what is wrong with a message, nil if nothing is that could end a server.
local function wrong_message(body)
  local length, varint, fields = body:length(), reader(body), 0

  -- Calls `visit` with number, type, start and end of each field from `at` to `stop`, until it returns something, and
  -- returns that; what is wrong with the message, if it is none.
  local function walk(at, stop, visit)
    while at < stop do
      local key, start, size
      key, start = varint(at)
      fields = fields + 1
      if fields > MAX_FIELDS then return "the message has more than " .. MAX_FIELDS .. " fields" end
      if key == nil or key > MAX_KEY then return NO_MESSAGE end
      local kind = key % 8
      if kind == BYTES then
        size, start = varint(start)
        at = size and start + size
      elseif kind == VARINT then
        at = select(2, varint(start))
      else
        at = kind == FIXED_64 and start + 8 or kind == FIXED_32 and start + 4 or nil
      end
      if at == nil or at > stop then return NO_MESSAGE end
      local found = visit(math.floor(key / 8), kind, start, at)
      if found ~= nil then return found end
    end
  end

  -- A negative size is a number of 64 bits here.
  local function wrong_input(at, stop)
    local elements, dimensions = 1, 0
    return walk(at, stop, function(number, _, start, last)
      while number == DIMENSIONS and start < last do
        local size
        size, start = varint(start)
        if size == nil then return NO_MESSAGE end
        elements, dimensions = elements * size, dimensions + 1
        if size > length or elements > length then return SHAPE end
        if dimensions > MAX_DIMENSIONS then return DIMENSIONS_TOO_MANY end
      end
    end)
  end

  return walk(HEAD_BYTES, length, function(number, kind, start, last)
    if kind ~= BYTES then return nil end
    if number == INPUTS then return wrong_input(start, last) end
    if number ~= OUTPUTS then return nil end
    if last - start > MAX_OUTPUT_BYTES then return "an output has more than " .. MAX_OUTPUT_BYTES .. " bytes" end
    if string.find(body:getBytes(start, last - start), "classification", 1, true) then return CLASSIFICATION end
  end)
end

function envoy_on_request(handle)
  if string.match(handle:headers():get(":path") or "", "^[^?]*") ~= INFER then return end
  local body = handle:body()
  local wrong = body ~= nil and wrong_message(body)
  if wrong then handle:respond({[":status"] = "400"}, wrong) end
end
