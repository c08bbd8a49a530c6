-- Refuses requests of KServe v2 by HTTP that end Triton (2.51) or a step, whose callers' fault would be the revision's:
--   the parameter `classification`, if an output has strings
--   an input's shape of more elements than the request has bytes, negative sizes included
--   deeply nested JSON, and JSON that is too long to be read here
-- An image, bare or in base64, is refused as such before any limit of JSON. A request is whole when it comes here.

local LENGTH = "inference-header-content-length"
local MOST_DEPTH, MOST_JSON, MAX_DIMENSIONS = 32, 1048576, 8
local QUOTE, BACKSLASH, COLON, COMMA, ZERO, NINE = string.byte('"\\:,09', 1, 6)
local OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT = string.byte("[]{}", 1, 4)
local SPACES = {[9] = true, [10] = true, [13] = true, [32] = true}
local CLASSIFICATION = "the parameter 'classification' of an output is not supported"
local SHAPE = "an input's 'shape' has more elements than the request has bytes"
local MOST_HEAD = 1024  -- bytes in which an image in base64 is looked for
local IMAGES = {
  ["\137PNG"] = "PNG", ["\255\216\255"] = "JPEG", ["RIFF"] = "WebP", ["II*"] = "TIFF", ["II+"] = "TIFF",
  ["MM\0"] = "TIFF", ["GIF8"] = "GIF", ["iVBORw0K"] = "PNG in base64", ["/9j/"] = "JPEG in base64",
  ["\\/9j\\/"] = "JPEG in base64", ["_9j_"] = "JPEG in base64", ["UklGR"] = "WebP in base64",
  ["SUkqA"] = "TIFF in base64", ["SUkrA"] = "TIFF in base64", ["TU0AK"] = "TIFF in base64",
  ["R0lGOD"] = "GIF in base64", ["data:"] = "data: URL, base64",
}
local B64 = "KServe v2 has no 'b64' (base64)"
local NO_JSON = "no JSON of KServe v2"
local PLACE = "; images go to POST /v1/models/NAME:segment"
local DIMENSIONS_TOO_MANY = "an input's 'shape' has more than " .. MAX_DIMENSIONS .. " dimensions"

-- Returns what is wrong with a request that begins so, if it is an image or has one without the inputs of KServe v2.
local function wrong_format(head)
  local text = string.gsub(head, "^[%s\"']+", "")
  if string.sub(text, 1, 2) == "--" then return "the body is a form, and " .. NO_JSON .. PLACE end
  for start, kind in pairs(IMAGES) do
    if string.sub(text, 1, #start) == start then
      return "the body is an image (" .. kind .. "), and " .. NO_JSON .. PLACE
    end
    if string.find(head, '"' .. start, 1, true) and not string.find(head, '"inputs"', 1, true) then
      return "the JSON has an image (" .. kind .. "), and no inputs of KServe v2" .. PLACE
    end
  end
end

-- Returns what is wrong with the list of sizes in JSON that begins at `at`, of which Triton takes whole numbers alone.
local function wrong_sizes(text, at, bytes)
  local elements, size, dimensions = 1, nil, 0
  local byte = string.byte(text, at)
  while SPACES[byte] do at = at + 1; byte = string.byte(text, at) end
  if byte ~= OPEN_LIST then return nil end
  repeat
    at = at + 1
    byte = string.byte(text, at)
    if byte ~= nil and byte >= ZERO and byte <= NINE then
      size = (size or 0) * 10 + byte - ZERO
      if size > bytes then return SHAPE end
    elseif byte == COMMA or byte == CLOSE_LIST then
      elements, size, dimensions = elements * (size or 1), nil, dimensions + 1
      if elements > bytes then return SHAPE end
      if dimensions > MAX_DIMENSIONS then return DIMENSIONS_TOO_MANY end
    elseif not SPACES[byte] then
      return nil
    end
  until byte == CLOSE_LIST
end

-- Returns what is wrong with a request's JSON, nil if nothing is that could end a server. The loop has no call that
-- LuaJIT does not compile, such as a pattern.
local function wrong_json(text, bytes)
  local at, depth, size = 1, 0, #text
  local start, stop, is_escaped = 0, 0, false  -- of the last string
  while at <= size do
    local byte = string.byte(text, at)
    if byte == QUOTE then
      start, is_escaped, at = at + 1, false, at + 1
      byte = string.byte(text, at)
      while byte ~= QUOTE and at <= size do
        if byte == BACKSLASH then at, is_escaped = at + 1, true end
        at = at + 1
        byte = string.byte(text, at)
      end
      stop = at - 1
    elseif byte == COLON then
      if is_escaped then return "the names of the JSON must be without escapes" end
      local length = stop - start + 1
      if length == #"classification" and string.sub(text, start, stop) == "classification" then return CLASSIFICATION end
      if length == #"b64" and string.sub(text, start, stop) == "b64" then return B64 .. PLACE end
      if length == #"shape" and string.sub(text, start, stop) == "shape" then
        local wrong = wrong_sizes(text, at + 1, bytes)
        if wrong ~= nil then return wrong end
      end
    elseif byte == OPEN_LIST or byte == OPEN_OBJECT then
      depth = depth + 1
      if depth > MOST_DEPTH then return "the JSON is nested more than " .. MOST_DEPTH .. " deep" end
    elseif byte == CLOSE_LIST or byte == CLOSE_OBJECT then
      depth = depth - 1
    end
    at = at + 1
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = string.match(headers:get(":path") or "", "^[^?]*")
  if string.sub(path, 1, 11) ~= "/v2/models/" or string.sub(path, -6) ~= "/infer" then return end
  local stated = headers:get(LENGTH)
  if stated ~= nil and (headers:getNumValues(LENGTH) > 1 or not string.find(stated, "^%d+$")) then
    handle:respond({[":status"] = "400"}, "the header Inference-Header-Content-Length must be one number")
  end
  local body = handle:body()
  if body == nil then return end
  local length = stated and tonumber(stated) or body:length()
  if length == 0 or length > body:length() then return end  -- no JSON, or none that Triton reads
  local head = body:getBytes(0, math.min(length, MOST_HEAD))
  local wrong = wrong_format(head)
  if wrong == nil then
    if length > MOST_JSON then
      wrong = "the request's JSON has more than " .. MOST_JSON .. " bytes: send tensors as binary data, not in base64"
    else
      wrong = wrong_json(body:getBytes(0, length), body:length())
    end
    -- A limit of JSON says nothing about what is none.
    if wrong ~= nil and not string.find(head, "^%s*{") then
      wrong = "the body is " .. NO_JSON .. ", which begins with '{'" .. PLACE
    end
  end
  if wrong ~= nil then handle:respond({[":status"] = "400"}, wrong) end
end
