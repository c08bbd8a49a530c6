-- Translates plain HTTP: `POST /v1/models/NAME:segment`, whose body is an image, into a request of KServe v2, and its
-- answer into JSON; errors become problems of RFC 9457. PROBES are translated as well; DOCUMENTS are answered by the
-- table of routes.
--
-- Two filters run it. The first, where IS_HEAD is true, reads the head of a request: with the path of KServe v2 the
-- rules and limits of a model hold before anything is read of the body. The second translates bodies.
-- PAGE is the path of the document that a request for `/` gets if it accepts HTML.
-- NOTED is the namespace of the dynamic metadata that has the path and method as they came in, and what the first
-- filter leaves to the second: `model`, `boundary` of a form, options by name, `is_json` if the body is JSON with an
-- image in base64, which a step reads, `is_json_preferred`, `is_png_accepted`, and `format`, "png" or "webp", if the request
-- accepts a picture; then `picture`, the content type of the answer if that is to be one. MARK is the header of a request
-- that is translated. MAX_BYTES limits a request, MAX_JSON_BYTES one of JSON. An answer has at most MOST_ANSWER_BYTES, and
-- all answers that are under way in this thread MOST_HELD_BYTES: they are held until they are whole, in memory that no
-- limit of Envoy bounds.
--
-- The metadata of a request's route have the names of classes, as JSON's strings, by group and id.
--
-- Tensors are requested in binary, so that a mask's bytes are copied and not parsed. A script blocks its thread, so its
-- time must be linear in what callers send.

local PROBES = {["/healthz"] = "/v2/health/live", ["/readyz"] = "/v2/health/ready"}
local DOCUMENTS = {["/"] = true, [PAGE] = true, ["/docs"] = true, ["/openapi.json"] = true, ["/v1/models"] = true}
local ITSELF = "send the image itself (curl --data-binary @FILE)"
local HOW = ITSELF .. ", or as a form's file (curl -F image=@FILE)"
local OPTIONS = {
  encoding = true, max_detections = true, multimask = true, picture = true, point_labels = true, points = true,
  prompt_boxes = true, score_threshold = true,
}
local OPTION_NAMES =
  "encoding, max_detections, multimask, picture, point_labels, points, prompt_boxes, score_threshold"
local ANSWERS = "the answer is application/json, or a picture as image/png or image/webp"
-- The ranges of RFC 9110 that have each type of an answer, the most specific one first.
local RANGES = {
  json = {"application/json", "application/*", "*/*"},
  png = {"image/png", "image/*", "*/*"},
  webp = {"image/webp", "image/*", "*/*"},
}
local ADVICE = {["image/png"] = "image/webp", ["image/webp"] = "application/json"}
local LENGTH = "inference-header-content-length"
local MOST_BOUNDARY = 70
local MOST_VALUE = 256  -- of a parameter of a header that comes in sections
local MOST_HEAD = 8192  -- of a part of a form, and of a body, which patterns go over
local MOST_PROBLEM = 65536  -- bytes of an error that are read
local LARGE = 1048576  -- bytes of a body after which the thread's memory is collected at once
local MOST_RETURNS = 131072  -- twice what a compressed image of 16 MiB has
local NEWLINE, DASH, QUOTE = string.byte('\n-"', 1, 3)
-- What an image begins with once `curl -d` has left out its bytes 0, 10 and 13.
local MANGLED = {"^\137PNG\26", "^\255\216\255", "^RIFF", "^II[*+]", "^MM[*+]"}
local JSON_ALLOWED = '; as application/json the body is {"image": "<base64>"}'
local TITLES = {
  ["400"] = "Bad Request", ["401"] = "Unauthorized", ["404"] = "Not Found", ["405"] = "Method Not Allowed",
  ["406"] = "Not Acceptable", ["408"] = "Request Timeout", ["413"] = "Content Too Large",
  ["415"] = "Unsupported Media Type", ["422"] = "Unprocessable Content", ["429"] = "Too Many Requests",
  ["431"] = "Request Header Fields Too Large", ["500"] = "Internal Server Error",
  ["502"] = "Bad Gateway", ["503"] = "Service Unavailable", ["504"] = "Gateway Timeout",
}
local ESCAPES = {['"'] = '\\"', ["\\"] = "\\\\"}

-- Returns the model that a request names, nil if it names none in plain HTTP, and its path, query and method.
local function target(handle)
  local noted = handle:streamInfo():dynamicMetadata():get(NOTED)
  -- Envoy notes no path of more than 8 KiB.
  if noted == nil or noted["path"] == nil then return nil end
  local path, query = string.match(noted["path"], "^([^?]*)%??(.*)$")
  local model = string.match(path, "^/v1/models/([%w._-]+):segment$")
  return model, path, query, noted["method"]
end

local function quoted(text)
  text = string.gsub(text, '["\\]', ESCAPES)
  return '"' .. string.gsub(text, "[^ -~]", "?") .. '"'
end

-- Returns a problem of RFC 9457; `detail` is JSON.
local function problem(status, detail)
  local title = TITLES[status] and '"title":"' .. TITLES[status] .. '",' or ""
  return "{" .. title .. '"status":' .. status .. ',"detail":' .. detail .. "}\n"
end

local function refuse(handle, status, reason, headers)
  headers = headers or {}
  headers[":status"] = status
  handle:respond(headers, reason)  -- ends the script
end

local function unescaped(text)
  text = string.gsub(text, "%+", " ")
  return (string.gsub(text, "%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

local function add_option(handle, options, name, value)
  if not OPTIONS[name] then
    refuse(handle, "400", "unknown option " .. quoted(string.sub(name, 1, 80)) .. "; allowed are " .. OPTION_NAMES)
  end
  if options[name] ~= nil then refuse(handle, "400", "option '" .. name .. "' is given twice") end
  options[name] = value
end

local function options_of(handle, query)
  local options = {}
  for pair in string.gmatch(query, "[^&]+") do
    local name, value = string.match(pair, "^([^=]*)=?(.*)$")
    add_option(handle, options, unescaped(name), unescaped(value))
  end
  return options
end

-- Returns the string in quotation marks that begins at `at`, without its backslashes, and where it ends.
local function quoted_string(text, at)
  local stop = string.find(text, '[\\"]', at)
  while stop ~= nil and string.byte(text, stop) ~= QUOTE do stop = string.find(text, '[\\"]', stop + 2) end
  stop = stop or #text + 1
  return string.gsub(string.sub(text, at, stop - 1), "\\(.)", "%1"), stop
end

-- Returns the parameters of a header by their names in small letters, also as RFC 2231 and 5987 have them, such as
-- `name*=UTF-8''a%20b` and `name*0="a"; name*1="b"`.
local function parameters(text)
  local found, at = {}, 1
  while true do
    local _, stop, name = string.find(text, ";%s*([^%s;=]+)%s*=%s*", at)
    if stop == nil then return found end
    local value
    if string.byte(text, stop + 1) == QUOTE then
      value, at = quoted_string(text, stop + 2)
    else
      value = string.match(text, "^[^%s;]*", stop + 1)
      at = stop + 1
    end
    local plain, marks = string.match(string.lower(name), "^([^*]*)(.*)$")
    local section = string.match(marks, "^%*(%d+)")
    if string.sub(marks, -1) == "*" then
      value = string.gsub(string.gsub(value, "^[^']*'[^']*'", ""), "%%(%x%x)", function(digits)
        return string.char(tonumber(digits, 16))
      end)
    end
    if section ~= nil and section ~= "0" then
      found[plain] = string.sub((found[plain] or "") .. value, 1, MOST_VALUE)
    elseif marks ~= "" or found[plain] == nil then
      found[plain] = value
    end
  end
end

-- Returns the parameters of the content disposition among the headers of a part, which may be folded.
local function disposition(head)
  head = string.gsub(head, "\r\n[ \t]+", " ")
  local _, stop = string.find(string.lower(head), "\ncontent-disposition:", 1, true)
  return stop and parameters(string.match(head, "^[^\r\n]*", stop + 1)) or {}
end

-- Returns what stands before an image of so many bytes, and the length of the JSON in it.
local function frame(size, options)
  local named = {'"binary_data_output":true'}
  for name, value in pairs(options) do table.insert(named, quoted(name) .. ":" .. quoted(value)) end
  local header = '{"inputs":[{"name":"IMAGE","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":'
    .. string.format("%d", size + 4) .. '}}],"parameters":{' .. table.concat(named, ",") .. "}}"
  local length = string.char(
    size % 256, math.floor(size / 256) % 256, math.floor(size / 65536) % 256, math.floor(size / 16777216)
  )
  return header .. length, #header
end

-- Returns a function that returns where a delimiter, "\r\n--" and a form's boundary, begins and ends in a text, from a
-- position on; nil if it does not. An image may consist of returns, each of which is looked at: a form has at most
-- MOST_RETURNS that begin no delimiter. Those of a compressed image are one byte of 256.
local function delimiter_finder(handle, text, delimiter)
  local others = 0
  return function(from)
    local at = string.find(text, "\r", from, true)
    while at ~= nil do
      local is_near = string.byte(text, at + 1) == NEWLINE and string.byte(text, at + 2) == DASH
      if is_near and string.sub(text, at, at + #delimiter - 1) == delimiter then return at, at + #delimiter - 1 end
      others = others + 1
      if others > MOST_RETURNS then
        refuse(handle, "400", "the form has more than " .. MOST_RETURNS .. " bytes of 13 (carriage return): " .. ITSELF)
      end
      at = string.find(text, "\r", at + 1, true)
    end
  end
end

-- Returns the position of a form's image, its size, and adds the form's other fields to the options.
local function image_of_form(handle, text, boundary, options)
  local delimiter = "\r\n--" .. boundary
  local find_delimiter = delimiter_finder(handle, text, delimiter)
  local image, size
  local at = string.sub(text, 1, #delimiter - 2) == string.sub(delimiter, 3) and #delimiter - 2 or nil
  if at == nil then _, at = string.find(string.sub(text, 1, MOST_HEAD), delimiter, 1, true) end
  if at == nil then refuse(handle, "400", "the body is no form: it does not begin with the boundary; " .. HOW) end
  while at ~= nil and string.sub(text, at + 1, at + 2) == "\r\n" do
    local head = string.sub(text, at + 1, at + MOST_HEAD + 4)
    local _, head_size = string.find(head, "\r\n\r\n", 1, true)
    if head_size == nil then
      if #head < MOST_HEAD then break end
      refuse(handle, "400", "the head of a part of the form has more than " .. MOST_HEAD .. " bytes")
    end
    local head_end = at + head_size
    local next_at, next_end = find_delimiter(head_end - 1)
    if next_at == nil then break end
    head = string.sub(head, 1, head_size)
    local about = disposition(head)
    local length = math.max(0, next_at - head_end - 1)
    -- A file is the image, whatever its field is called.
    if about.name ~= "image" and about.filename == nil then
      add_option(handle, options, about.name or "", string.sub(text, head_end + 1, head_end + math.min(length, 80)))
    elseif image ~= nil then
      refuse(handle, "400", "the form has more than one image; one is allowed")
    else
      image, size = head_end + 1, length
    end
    at = next_end
  end
  if image == nil then refuse(handle, "400", "the form has no image: " .. HOW) end
  return image, size
end

local function write_head(headers, length, json_length)
  headers:replace("content-type", "application/octet-stream")
  headers:replace("content-length", string.format("%d", length))
  headers:replace(LENGTH, string.format("%d", json_length))
  headers:remove("accept-encoding")  -- the answer is read here
  headers:remove(MARK)
end

-- Returns the boundary of a form, nil for a body that is the image.
local function boundary_of(handle, headers)
  local kind = headers:get("content-type") or ""
  if not string.find(string.lower(kind), "^multipart/form%-data") then return nil end
  local boundary = parameters(kind).boundary
  if boundary == nil or boundary == "" or #boundary > MOST_BOUNDARY then
    refuse(handle, "400", "a form needs a boundary of 1 to " .. MOST_BOUNDARY .. " characters in its content type")
  end
  return boundary
end

-- Returns whether a request accepts HTML by name, as browsers do, and not as one of all types.
local function accepts_html(headers)
  for number = 0, headers:getNumValues("accept") - 1 do
    if string.find(string.lower(headers:getAtIndex("accept", number)), "text/html", 1, true) then return true end
  end
  return false
end

-- Returns the weight, 0 to 1, that an Accept header gives each type of an answer, and the place of the range that does.
local function accepted_types(accept)
  local listed, count = {}, 0
  for range in string.gmatch(accept, "[^,]+") do
    count = count + 1
    local name = string.lower(string.match(range, "^%s*([^%s;]*)"))
    listed[name] = {tonumber(string.match(range, ";%s*[qQ]=([%d.]+)") or 1) or 1, count}
  end
  local weights, places = {}, {}
  for kind, ranges in pairs(RANGES) do
    local found = listed[ranges[1]] or listed[ranges[2]] or listed[ranges[3]] or {count == 0 and 1 or 0, 1}
    weights[kind], places[kind] = found[1], found[2]
  end
  return weights, places
end

local function read_head(handle)
  local model, path, query, method = target(handle)
  local headers = handle:headers()
  if PROBES[path] or DOCUMENTS[path] then
    if method ~= "GET" and method ~= "HEAD" then refuse(handle, "405", "allowed is GET", {allow = "GET, HEAD"}) end
    if PROBES[path] then headers:replace(":path", PROBES[path]) end
    if path == "/" and accepts_html(headers) then headers:replace(":path", PAGE) end
    return
  end
  if model == nil then return end
  if method ~= "POST" then
    refuse(handle, "405", "allowed is POST, with an image as the body", {allow = "POST"})
  end
  local accept = headers:get("accept") or ""
  local weights, places = accepted_types(accept)
  local best = math.max(weights.png, weights.webp)
  if best == 0 and weights.json == 0 then
    refuse(handle, "406", ANSWERS .. "; the request accepts " .. quoted(string.sub(accept, 1, 80)))
  end
  local kind = string.lower(headers:get("content-type") or "")
  local noted = handle:streamInfo():dynamicMetadata()
  local options = options_of(handle, query)
  local is_png = weights.png == best and (weights.webp < best or places.png <= places.webp)
  if weights.json >= best then noted:set(NOTED, "is_json_preferred", true) end
  if weights.png > 0 then noted:set(NOTED, "is_png_accepted", true) end
  if best > 0 then noted:set(NOTED, "format", is_png and "png" or "webp") end
  for name, value in pairs(options) do noted:set(NOTED, name, value) end
  -- What curl says of a body for which nobody has said it.
  if string.find(kind, "^application/x%-www%-form%-urlencoded") then noted:set(NOTED, "is_unlabelled", true) end
  local is_json_body = string.find(kind, "^[%w]+/[%w.+-]*json") ~= nil
  if is_json_body then noted:set(NOTED, "is_json", true) end
  noted:set(NOTED, "model", model)
  noted:set(NOTED, "boundary", boundary_of(handle, headers) or "")
  headers:replace(":path", "/v2/models/" .. model .. "/infer")
  headers:replace(MARK, is_json_body and "json" or "1")
end

local function is_mangled(text)
  local head = string.sub(text, 1, MOST_HEAD)
  if string.find(head, "[%z\r\n]") then return false end
  for _, pattern in ipairs(MANGLED) do
    if string.find(head, pattern) then return true end
  end
end

-- Replaces the option of a picture by the parameters for it, and notes what the answer then is.
local function choose_picture(handle, noted, options)
  local picture = options.picture or (not noted["is_json_preferred"] and "overlay")
  local format = noted["format"]
  options.picture = nil
  if not picture then return end
  if picture ~= "overlay" and picture ~= "labels" then
    refuse(handle, "400", "option 'picture' is " .. quoted(string.sub(picture, 1, 80)) .. "; allowed are labels, overlay")
  end
  if format == nil then refuse(handle, "406", ANSWERS .. "; picture=" .. picture .. " needs one of the last two") end
  if picture == "overlay" then
    options.overlay, options.outputs = format, "OVERLAY"
  elseif not noted["is_png_accepted"] or (options.encoding or "png") ~= "png" then
    refuse(handle, "406", "a label map (picture=labels) is image/png with encoding=png alone")
  else
    format, options.outputs = "png", "LABELS"
  end
  handle:streamInfo():dynamicMetadata():set(NOTED, "picture", "image/" .. format)
end

local function translate(handle)
  local noted = handle:streamInfo():dynamicMetadata():get(NOTED)
  if noted == nil or noted["model"] == nil then return end
  local options = {}
  for name in pairs(OPTIONS) do options[name] = noted[name] end
  local body = handle:body(true)
  if body:length() == 0 then refuse(handle, "400", "the request has no body; it must be an image") end
  local text = body:getBytes(0, body:length())
  if noted["is_unlabelled"] and is_mangled(text) then
    handle:streamInfo():dynamicMetadata():set(NOTED, "is_mangled", true)
  end
  if noted["boundary"] ~= "" then
    local at, size = image_of_form(handle, text, noted["boundary"], options)
    text = string.sub(text, at, at + size - 1)
  end
  choose_picture(handle, noted, options)
  local before, json_length = frame(#text, options)
  local length = #before + #text
  if length > (noted["is_json"] and MAX_JSON_BYTES or MAX_BYTES) then refuse(handle, "413", "") end
  body:setBytes(before .. text)
  text = nil
  if length > LARGE then collectgarbage() end
  -- Headers that were taken before the wait for the body are void after it.
  write_head(handle:headers(), length, json_length)
end

local function float32(a, b, c, d)
  local exponent, fraction = (d % 128) * 2 + math.floor(c / 128), (c % 128) * 65536 + b * 256 + a
  if exponent == 255 then return "null" end
  local value = exponent == 0 and math.ldexp(fraction, -149) or math.ldexp(fraction + 8388608, exponent - 150)
  return string.format("%.9g", d < 128 and value or -value)
end

local function int32(a, b, c, d)
  local value = ((d * 256 + c) * 256 + b) * 256 + a
  return string.format("%d", value < 2147483648 and value or value - 4294967296)
end

local READERS = {FP32 = {4, float32}, INT32 = {4, int32}, INT64 = {8, int32}}

-- Returns the numbers of a tensor as texts. Those of 64 bits are counts of pixels, which 32 bits hold.
local function numbers(body, tensor)
  if tensor == nil then return {} end
  local width, read = READERS[tensor.datatype][1], READERS[tensor.datatype][2]
  local list = {}
  for at = tensor.at, tensor.at + tensor.size - 1, width do
    table.insert(list, read(string.byte(body, at, at + 3)))
  end
  return list
end

local function items(body, tensor)
  local list, at = {}, tensor and tensor.at or 1
  while tensor and at < tensor.at + tensor.size do
    local a, b, c, d = string.byte(body, at, at + 3)
    local size = ((d * 256 + c) * 256 + b) * 256 + a
    table.insert(list, string.sub(body, at + 4, at + 3 + size))
    at = at + 4 + size
  end
  return list
end

local function group(list, index, count)
  return "[" .. table.concat(list, ",", (index - 1) * count + 1, index * count) .. "]"
end

-- Returns `,"mask":...`: COCO's RLE and polygons as they are there, a picture in base64; empty without a mask.
local function mask(handle, encoded, size)
  if encoded == nil then return "" end
  -- Of the characters of RLE counts polygons have none but brackets, and a picture's first byte is none.
  if string.find(encoded, "^[0-o]+$") and encoded ~= "[]" then
    return ',"mask":{"size":' .. size .. ',"counts":' .. quoted(encoded) .. "}"
  end
  if string.byte(encoded) == 91 then return ',"mask":' .. encoded end
  return ',"mask":"' .. handle:base64Escape(encoded) .. '"'
end

-- Returns `"class_id":...`, and `,"class":...` where the class has a name.
local function named(names, class)
  local name = names[class]
  return '"class_id":' .. class .. (name and ',"class":' .. name or "")
end

local function objects(handle, body, tensors, masks, size, names)
  local boxes, scores, classes = numbers(body, tensors.BOXES), numbers(body, tensors.SCORES), numbers(body, tensors.CLASSES)
  local points = numbers(body, tensors.KEYPOINTS)
  local each = #classes > 0 and #points / #classes or 0
  local list = {}
  for index, class in ipairs(classes) do
    local keypoints = {}
    for at = 1, each / 3 do table.insert(keypoints, group(points, (index - 1) * each / 3 + at, 3)) end
    table.insert(list, "{" .. named(names, class) .. ',"score":' .. scores[index] .. ',"box":' .. group(boxes, index, 4)
      .. (tensors.KEYPOINTS and ',"keypoints":[' .. table.concat(keypoints, ",") .. "]" or "")
      .. mask(handle, masks[index], size) .. "}")
  end
  return '"objects":[' .. table.concat(list, ",") .. "]"
end

local function segments(handle, body, tensors, masks, size, names)
  local text = string.gsub(items(body, tensors.SEGMENTS)[1], '"isThing":', '"is_thing":')
  local index = 0
  text = string.gsub(text, "%b{}", function(segment)
    index = index + 1
    segment = string.gsub(segment, '"class": *(%d+)', function(class) return named(names, class) end)
    return string.sub(segment, 1, -2) .. mask(handle, masks[index], size) .. "}"
  end)
  return '"segments":' .. text
end

local function classes(handle, body, tensors, masks, size, names)
  local areas, confidence = numbers(body, tensors.AREAS), numbers(body, tensors.CONFIDENCE)
  local list = {}
  for index, class in ipairs(numbers(body, tensors.CLASSES)) do
    table.insert(list, "{" .. named(names, class) .. ',"area":' .. areas[index] .. ',"confidence":' .. confidence[index]
      .. mask(handle, masks[index], size) .. "}")
  end
  return '"classes":[' .. table.concat(list, ",") .. "]"
end

-- Returns the tensors that the header of an answer lists, by name, and where the last one ends.
local function tensors_of(header)
  local tensors, at = {}, #header + 1
  for name, datatype, size in string.gmatch(
    header, '{"name":"([%w_]+)","datatype":"(%w+)","shape":%[[%d,]*%],"parameters":{"binary_data_size":(%d+)}}'
  ) do
    tensors[name] = {datatype = datatype, at = at, size = tonumber(size)}
    at = at + tonumber(size)
  end
  return tensors, at - 1
end

local function answer(handle, model, body, tensors, names)
  local height_width = numbers(body, tensors.SIZE)
  local size = group(height_width, 1, 2)
  local masks, labels = items(body, tensors.MASKS), items(body, tensors.LABELS)
  local part = (tensors.BOXES and objects) or (tensors.SEGMENTS and segments) or classes
  local fields = {
    '"model":' .. quoted(model),
    '"revision":' .. quoted(items(body, tensors.REVISION)[1] or ""),
    '"height":' .. height_width[1], '"width":' .. height_width[2],
    part(handle, body, tensors, masks, size, names),
  }
  if labels[1] then table.insert(fields, '"labels":"' .. handle:base64Escape(labels[1]) .. '"') end
  local unlike = numbers(body, tensors.OUT_OF_DISTRIBUTION)
  if #unlike == 2 then
    table.insert(fields, '"out_of_distribution":{"score":' .. unlike[1] .. ',"threshold":' .. unlike[2] .. "}")
  end
  if tensors.CONTINUED then
    table.insert(fields, '"continued":' .. tostring(numbers(body, tensors.CONTINUED)[1] == "1"))
  end
  return "{" .. table.concat(fields, ",") .. "}\n"
end

-- Replaces an error, which is `{"error": "..."}` of this gateway and of servers, by a problem.
local function write_problem(handle, status, method)
  handle:headers():replace("content-type", "application/problem+json")
  if method == "HEAD" then return handle:headers():remove("content-length") end  -- with a body it would be two answers
  local body = handle:body(true)
  local text = body:length() > 0 and body:getBytes(0, math.min(body:length(), MOST_PROBLEM)) or ""
  local detail = string.match(text, '^%s*{%s*"error"%s*:%s*(".*")%s*}%s*$') or quoted(string.sub(text, 1, 500))
  detail = string.gsub(detail, "^\"in ensemble '[^']*', ", '"')
  local noted = handle:streamInfo():dynamicMetadata():get(NOTED)
  if status == "400" and noted["is_mangled"] and string.find(detail, "image is ", 1, true) then
    detail = string.sub(detail, 1, -2) .. '; curl -d changes the bytes of a file, --data-binary does not"'
  elseif status == "400" and noted["is_json"] and string.find(detail, "image is not a ", 1, true) then
    detail = string.sub(detail, 1, -2) .. string.sub(quoted(JSON_ALLOWED), 2)
  end
  local length = body:setBytes(problem(status, detail))
  handle:headers():replace("content-length", string.format("%d", length))
end

-- Returns the overlay, or else the label map, of an answer.
local function picture_of(body, tensors) return items(body, tensors.OVERLAY)[1] or items(body, tensors.LABELS)[1] end

-- Replaces an answer by its picture; a model of objects, or of masks that may overlap, has no label map.
local function write_picture(handle, header_length)
  local body = handle:body(true)
  local text = body:getBytes(0, body:length())
  local picture = picture_of(text, tensors_of(string.sub(text, 1, header_length)))
  if picture == nil then
    handle:headers():replace(":status", "406")
    handle:headers():replace("content-type", "application/problem+json")
    picture = problem("406", quoted("the model answers no label map: leave out picture=labels for an overlay, or accept application/json"))
  end
  handle:headers():replace("content-length", string.format("%d", body:setBytes(picture)))
end

local held = setmetatable({}, {__mode = "k"})  -- bytes of the answers under way; one whose caller left is collected

local function held_bytes()
  local sum = 0
  for _, size in pairs(held) do sum = sum + size end
  return sum
end

-- Returns why an answer of so many bytes is not translated, if so: a status and a sentence.
local function refused_answer(size, model, picture)
  if size > MOST_ANSWER_BYTES then
    return "422", "the answer has " .. string.format("%d", size) .. " bytes, and plain HTTP allows " .. MOST_ANSWER_BYTES
      .. "; request " .. (ADVICE[picture] or "encoding=rle") .. ", or POST /v2/models/" .. model .. "/infer"
  end
  if held_bytes() + size > MOST_HELD_BYTES then collectgarbage() end
  if held_bytes() + size > MOST_HELD_BYTES then return "503", "too many large answers are under way; try again" end
end

local function translate_answer(handle)
  local model, path, _, method = target(handle)
  if path == nil then return end
  local headers = handle:headers()
  local status = headers:get(":status")
  local is_ours = string.sub(path, 1, 4) == "/v1/" or PROBES[path] or DOCUMENTS[path]
  if not is_ours and (status ~= "404" or string.find(path, "^/v2%f[/%z]")) then return end
  if status ~= "200" then return write_problem(handle, status, method) end
  if model == nil then return end
  local header_length = tonumber(headers:get(LENGTH) or "")
  if header_length == nil then return end
  local size = tonumber(headers:get("content-length") or "") or math.huge
  local names = handle:metadata():get(headers:get("x-segserve-group") or "") or {}
  headers:remove(LENGTH)
  headers:remove("content-length")
  local picture = handle:streamInfo():dynamicMetadata():get(NOTED)["picture"]
  local refusal, detail = refused_answer(size, model, picture)
  if refusal ~= nil then
    headers:replace(":status", refusal)
    headers:replace("content-type", "application/problem+json")
    if refusal == "503" then headers:replace("retry-after", "1") end
    local text = problem(refusal, quoted(detail))
    for chunk in handle:bodyChunks() do
      chunk:setBytes(text)
      text = ""
    end
    return
  end
  headers:replace("content-type", picture or "application/json")
  -- What is larger has a picture, and may be more than Envoy buffers.
  if picture and size <= LARGE then return write_picture(handle, header_length) end
  held[handle] = size
  local chunks, received, tensors, whole = {}, 0, nil, nil
  for chunk in handle:bodyChunks() do
    table.insert(chunks, chunk:getBytes(0, chunk:length()))
    received = received + chunk:length()
    chunk:setBytes("")
    if tensors == nil and received >= header_length then
      tensors, whole = tensors_of(string.sub(table.concat(chunks), 1, header_length))
    end
    if whole ~= nil and received >= whole then
      local body = table.concat(chunks)
      chunk:setBytes(picture and picture_of(body, tensors) or answer(handle, model, body, tensors, names))
      held[handle], chunks = nil, nil
      if size > LARGE then collectgarbage() end
      return
    end
  end
end

if IS_HEAD then
  envoy_on_request = read_head
else
  envoy_on_request, envoy_on_response = translate, translate_answer
end
