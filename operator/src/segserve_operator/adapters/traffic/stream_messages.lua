-- Holds every message of a stream to the model of its first, whose name chooses the route, and to MAX_MESSAGE_BYTES.
-- A message that names another model, or is too large, is replaced by one to a model that cannot exist, so Triton
-- answers it with an error in the stream, and the stream goes on. From a message that no client writes (a second name,
-- groups, a field that goes beyond it) on, nothing that Triton can read is passed on.
--
-- A message is `00 <length: 4 bytes> <fields>`; of its fields only the keys and lengths are read. Clients write them in
-- the order of their numbers, so the name is first, and a message is held back until its name has arrived.
--
-- It runs before the filter that extracts the name of the first message: that filter of Envoy 1.40 loses the part of a
-- second message that arrives together with the end of the first, so such a part is held back, too.

local STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
local NAME_KEY = 10  -- field 1, a string
local MAX_NAME_BYTES = 256
local MAX_FIELDS = 4096  -- of one message; a request has a handful, and two more for each tensor
local MAX_VARINT_BYTES = 10
local MAX_KEY = 2 ^ 32 - 1  -- of a longer one readers of protobuf may see the lower bits
local HEAD_BYTES = 5
local POISON = "\255"  -- no field has a key like it

-- The reader of one stream. `held` are bytes that were not passed on yet; `at` is the position in them and the chunk.
local Reader = {}
Reader.__index = Reader

local function new_reader()
  return setmetatable({held = "", left = 0, skip = 0, fields = 0, dropping = false, cut = false}, Reader)
end

function Reader:open(chunk)
  self.chunk, self.chunk_length = chunk, chunk:length()
  self.length, self.at, self.passed, self.out = #self.held + self.chunk_length, 0, 0, nil
  self.with_first = not self.has_second
end

function Reader:bytes(from, count)
  local held = #self.held
  if from >= held then return self.chunk:getBytes(from - held, count) end
  if from + count <= held then return string.sub(self.held, from + 1, from + count) end
  return string.sub(self.held, from + 1) .. self.chunk:getBytes(0, from + count - held)
end

-- Returns a number and the position after it; nil if it has not arrived whole, false if it is none.
function Reader:varint(from)
  local value, scale = 0, 1
  local text = self:bytes(from, math.min(MAX_VARINT_BYTES, self.length - from))
  for index = 1, #text do
    local byte = string.byte(text, index)
    value, scale = value + (byte % 128) * scale, scale * 128
    if byte < 128 then return value, from + index end
  end
  if #text == MAX_VARINT_BYTES then return false end
  return nil
end

-- Passes on what was not yet, up to `to`; without `to` drops it.
function Reader:flush(to, instead)
  self.out = self.out or {}
  if to > self.passed and not instead then table.insert(self.out, self:bytes(self.passed, to - self.passed)) end
  if instead then table.insert(self.out, instead) end
  self.passed = to
end

local function message_to(name)
  local field = "\10" .. string.char(#name) .. name
  return "\0\0\0\0" .. string.char(#field) .. field
end

-- Drops the message whose head is at `at`, and passes on one to a model of the name `reason`.
function Reader:refuse(length, reason)
  self:flush(self.at)
  self:flush(self.at + HEAD_BYTES, message_to(reason))
  self.at, self.left, self.skip, self.dropping = self.at + HEAD_BYTES, length, length, true
end

-- Reads the head of a message and its name; returns false if they have not arrived whole.
function Reader:begin()
  if self.length - self.at < HEAD_BYTES then return false end
  local flag, a, b, c, d = string.byte(self:bytes(self.at, HEAD_BYTES), 1, HEAD_BYTES)
  local length = ((a * 256 + b) * 256 + c) * 256 + d
  self.has_second = self.model ~= nil
  if self.with_first and self.has_second and self.length - self.at - HEAD_BYTES < length then return false end
  if flag ~= 0 then return self:refuse(length, "(refused: a compressed message)") end
  if length > MAX_MESSAGE_BYTES and self.has_second then
    return self:refuse(length, "(refused: the message is too large; at most " .. MAX_MESSAGE_BYTES .. " bytes are allowed)")
  end
  local name = ""
  if length > 0 then
    local start = self.at + HEAD_BYTES
    local available = math.min(self.length - start, length)
    if available == 0 then return false end
    if string.byte(self:bytes(start, 1)) == NAME_KEY then
      local size, first = self:varint(start + 1)
      if size == nil then return false end
      if size and size <= MAX_NAME_BYTES and first + size <= start + length then
        if first + size > self.length then return false end
        name = self:bytes(first, size)
        self.skip = first + size - self.at - HEAD_BYTES
      end
    end
  end
  -- A first message without a name in front has none, or the reader ends at it.
  self.model = self.model or name
  if name ~= self.model or (name == "" and self.has_second) then
    return self:refuse(length, "(refused: a stream is for the model of its first message)")
  end
  self.at, self.left, self.fields, self.dropping = self.at + HEAD_BYTES, length, 1, false
  return true
end

-- Reads the key of a field, and its length; returns false if they have not arrived whole, nil if it is not allowed.
function Reader:field()
  local key, next = self:varint(self.at)
  if key == nil then
    if self.length - self.at >= self.left then return nil end
    return false
  end
  self.fields = self.fields + 1
  if not key or key > MAX_KEY or self.fields > MAX_FIELDS then return nil end
  local kind, number, size = key % 8, math.floor(key / 8), 0
  if number <= 1 then return nil end
  if kind == 0 then
    local value, after = self:varint(next)
    if value == nil and self.length - self.at < self.left then return false end
    if not value then return nil end
    next = after
  elseif kind == 1 then size = 8
  elseif kind == 5 then size = 4
  elseif kind == 2 then
    local value, after = self:varint(next)
    if value == nil and self.length - self.at < self.left then return false end
    if not value then return nil end
    size, next = value, after
  else
    return nil
  end
  if next - self.at + size > self.left then return nil end
  self.skip = next - self.at + size
  return true
end

function Reader:read()
  while self.at < self.length do
    if self.skip > 0 then
      local skipped = math.min(self.skip, self.length - self.at)
      self.at, self.skip, self.left = self.at + skipped, self.skip - skipped, self.left - skipped
      if self.dropping then self:flush(self.at, "") end
    elseif self.left == 0 then
      if self:begin() == false then return end
    else
      local known = self:field()
      if known == false then return end
      if known == nil then self.cut = true; return end
    end
  end
end

-- Puts into the chunk what may be passed on, and keeps the rest.
function Reader:close()
  if self.cut then
    self:flush(self.at)
    self:flush(self.length, string.rep(POISON, self.length - self.at))
    self.held = ""
  else
    if self.out == nil and self.held == "" and self.at == self.length then return end
    self:flush(self.at)
    self.held = self:bytes(self.at, self.length - self.at)
  end
  self.chunk:setBytes(table.concat(self.out))
end

function envoy_on_request(handle)
  local path = handle:headers():get(":path")
  if string.sub(path, 1, #STREAM) ~= STREAM then return end
  local reader = new_reader()
  local broken = false
  for chunk in handle:bodyChunks() do
    if not broken and not reader.cut then
      local done, problem = pcall(function() reader:open(chunk); reader:read(); reader:close() end)
      broken = not done
      if broken then handle:logErr("a stream's message: " .. tostring(problem)) end
    else
      chunk:setBytes(string.rep(POISON, chunk:length()))
    end
    if broken then chunk:setBytes("") end
  end
end
