-- Bounds what a message of gRPC costs a server by its bytes: each element of a repeated field, and each field that a
-- server does not know, takes many times its bytes there, whatever it has. Refused are
--   a compressed message or body, which would be unpacked behind the bounds
--   a field that a ModelInferRequest does not have, groups included, and one of another type
--   more than MAX_FIELDS fields, those of nested messages and the elements of typed contents included
--   fields in more than MAX_PIECES pieces, between which the data of tensors are passed over
--   a name, a parameter or typed numbers of more than MAX_VALUE bytes
-- and what ends Triton (2.51) or a step, whose caller's fault would be the revision's:
--   the parameter `classification`, if an output has strings
--   an input's shape of more elements than the request has bytes, negative sizes included
-- The message is whole when it comes here.

local SERVICE = "/inference.GRPCInferenceService/"
local MAX_DIMENSIONS, MAX_FIELDS, MAX_PIECES, MAX_OUTPUT_BYTES = 8, 1024, 64, 4096
local PIECE_BYTES, MAX_VALUE = 16384, 16384
local MAX_QUESTION_BYTES = 4096  -- of a message that names a model at most
local QUESTIONS = {
  ModelReady = true, ModelMetadata = true, ModelConfig = true, ModelStatistics = true, ServerLive = true,
  ServerReady = true, ServerMetadata = true,
}
local COMPRESSED = "compressed gRPC messages are not supported: send them uncompressed, without content-encoding"
local CLASSIFICATION = "the parameter 'classification' of an output is not supported"
local NO_MESSAGE = "the message is not a ModelInferRequest"
local SHAPE = "an input's 'shape' has more elements than the request has bytes"
local DIMENSIONS_TOO_MANY = "an input's 'shape' has more than " .. MAX_DIMENSIONS .. " dimensions"
local VALUE_TOO_LONG = "a name, a parameter or typed 'contents' has more than " .. MAX_VALUE
  .. " bytes: send tensors as raw_input_contents"
local TOO_SCATTERED = "the message's fields are in more than " .. MAX_PIECES .. " pieces of " .. PIECE_BYTES
  .. " bytes: send tensors as raw_input_contents"
local HEAD_BYTES, MAX_VARINT_BYTES, MAX_KEY = 5, 10, 2 ^ 32 - 1
local VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5  -- types of fields

local function key(number, kind) return number * 8 + kind end

-- What a message has, by key: the most bytes of a field, the message that it is, or which field it is.
local DATA, SIZES, OUTPUT_PARAMETER = math.huge, "sizes", "output parameter"
local VALUE = {
  [key(1, VARINT)] = MAX_VALUE, [key(2, VARINT)] = MAX_VALUE, [key(3, BYTES)] = MAX_VALUE,
  [key(4, FIXED_64)] = MAX_VALUE, [key(5, VARINT)] = MAX_VALUE,
}
local PARAMETER = {[key(1, BYTES)] = MAX_VALUE, [key(2, BYTES)] = VALUE}
local CONTENTS = {[key(6, FIXED_32)] = MAX_VALUE, [key(7, FIXED_64)] = MAX_VALUE, [key(8, BYTES)] = DATA}
for number = 1, 7 do CONTENTS[key(number, BYTES)] = MAX_VALUE end  -- packed
for number = 1, 5 do CONTENTS[key(number, VARINT)] = MAX_VALUE end
local INPUT = {
  [key(1, BYTES)] = MAX_VALUE, [key(2, BYTES)] = MAX_VALUE, [key(3, BYTES)] = SIZES, [key(3, VARINT)] = SIZES,
  [key(4, BYTES)] = PARAMETER, [key(5, BYTES)] = CONTENTS,
}
local OUTPUT = {
  [key(1, BYTES)] = MAX_VALUE,
  [key(2, BYTES)] = {[key(1, BYTES)] = OUTPUT_PARAMETER, [key(2, BYTES)] = VALUE},
}
local REQUEST = {
  [key(1, BYTES)] = MAX_VALUE, [key(2, BYTES)] = MAX_VALUE, [key(3, BYTES)] = MAX_VALUE, [key(4, BYTES)] = PARAMETER,
  [key(5, BYTES)] = INPUT, [key(6, BYTES)] = OUTPUT, [key(7, BYTES)] = DATA,
}

-- Returns what is wrong with a message, nil if nothing is.
local function wrong_message(body)
  local length, fields, pieces = body:length(), 0, 0
  local piece, from = "", 0
  local elements, dimensions  -- of the input that is walked over

  -- Makes the piece begin at a position, unless it has so many bytes from there. Each `getBytes` walks over the buffers
  -- of a body, which a caller can make small: a piece is large, and pieces are counted.
  local function load(at, count)
    if at >= from and at + count <= from + #piece then return end
    pieces = pieces + 1
    piece, from = body:getBytes(at, math.min(PIECE_BYTES, length - at)), at
  end

  -- Returns a number of the message and the position after it.
  local function varint(at)
    local value, scale = 0, 1
    for index = at, math.min(at + MAX_VARINT_BYTES, length) - 1 do
      load(index, 1)
      local byte = string.byte(piece, index - from + 1)
      value, scale = value + (byte % 128) * scale, scale * 128
      if byte < 128 then return value, index + 1 end
    end
  end

  -- A negative size is a number of 64 bits here.
  local function wrong_sizes(at, stop)
    while at < stop do
      local size
      size, at = varint(at)
      if size == nil then return NO_MESSAGE end
      elements, dimensions = elements * size, dimensions + 1
      if size > length or elements > length then return SHAPE end
      if dimensions > MAX_DIMENSIONS then return DIMENSIONS_TOO_MANY end
    end
  end

  local function wrong_parameter(at, stop)
    if stop - at ~= #"classification" then return nil end
    load(at, stop - at)
    if string.sub(piece, at - from + 1, stop - from) == "classification" then return CLASSIFICATION end
  end

  local function wrong_fields(message, at, stop)
    while at < stop do
      local found, start = varint(at)
      if found == nil or found > MAX_KEY then return NO_MESSAGE end
      local field, kind, size, wrong = message[found], found % 8, nil, nil
      if field == nil then
        return "the message has a field " .. math.floor(found / 8) .. " of type " .. kind
          .. " where a ModelInferRequest has none"
      end
      if kind == BYTES then
        size, start = varint(start)
        at = size and start + size
      elseif kind == VARINT then
        at = select(2, varint(start))
      else
        at = start + (kind == FIXED_64 and 8 or 4)
      end
      if at == nil or at > stop then return NO_MESSAGE end
      fields = fields + 1
      if fields > MAX_FIELDS then return "the message has more than " .. MAX_FIELDS .. " fields" end
      if pieces > MAX_PIECES then return TOO_SCATTERED end
      if field == INPUT then elements, dimensions = 1, 0 end
      if field == OUTPUT and at - start > MAX_OUTPUT_BYTES then
        return "an output has more than " .. MAX_OUTPUT_BYTES .. " bytes"
      elseif field == SIZES then
        wrong = wrong_sizes(start, at)
      elseif field == OUTPUT_PARAMETER then
        wrong = wrong_parameter(start, at)
      elseif type(field) == "table" then
        wrong = wrong_fields(field, start, at)
      elseif at - start > field then
        wrong = VALUE_TOO_LONG
      end
      if wrong ~= nil then return wrong end
    end
  end

  if length < HEAD_BYTES then return NO_MESSAGE end
  local is_compressed, a, b, c, d = string.byte(body:getBytes(0, HEAD_BYTES), 1, HEAD_BYTES)
  if is_compressed ~= 0 then return COMPRESSED end
  if ((a * 256 + b) * 256 + c) * 256 + d ~= length - HEAD_BYTES then return NO_MESSAGE end
  return wrong_fields(REQUEST, HEAD_BYTES, length)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = string.match(headers:get(":path") or "", "^[^?]*")
  if string.sub(path, 1, #SERVICE) ~= SERVICE then return end
  for _, name in ipairs({"content-encoding", "grpc-encoding"}) do
    if (headers:get(name) or "identity") ~= "identity" then handle:respond({[":status"] = "415"}, COMPRESSED) end
  end
  local method = string.sub(path, #SERVICE + 1)
  if method ~= "ModelInfer" and not QUESTIONS[method] then return end
  local body, wrong = handle:body(), nil
  if body == nil then return end
  if method == "ModelInfer" then
    wrong = wrong_message(body)
  elseif body:length() > MAX_QUESTION_BYTES then
    wrong = "the message has more than " .. MAX_QUESTION_BYTES .. " bytes"
  end
  if wrong then handle:respond({[":status"] = "400"}, wrong) end
end
