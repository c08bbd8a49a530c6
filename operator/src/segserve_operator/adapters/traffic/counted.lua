-- Notes in the dynamic metadata COUNTED of a request that a server answered under which names it is counted:
--   caller, slice   empty for none; "other" for those that have no place
-- Only then is_counted is there. What a request names by itself is bounded, and has no byte that spoils a text.
-- With SLICE_BY_CALLER the slice of a request that names none is its caller's name, for the server, too.
-- In each thread MOST callers have a place, the first, and MOST slices. Where no place is left, a caller who has named
-- fewer slices than another by two or more takes the place of the last one of the caller with most: nobody can take all.

local MOST_BYTES = 128

local callers, number_of_callers = {}, 0
local slices, number_of_slices = {}, 0
local named_by = {}  -- slices by their caller, in the order of their first requests

local function printable(name)
  return (string.gsub(string.sub(name or "", 1, MOST_BYTES), "[^\32-\126]", "?"))
end

local function counted_caller(name)
  if name == "" or callers[name] then return name end
  if number_of_callers >= MOST then return "other" end
  callers[name], number_of_callers = true, number_of_callers + 1
  return name
end

local function counted_slice(name, caller)
  if name == "" or slices[name] then return name end
  local own = named_by[caller] or {}
  if number_of_slices >= MOST then
    local most = own
    for _, others in pairs(named_by) do
      if #others > #most then most = others end
    end
    if #most < #own + 2 then return "other" end
    slices[table.remove(most)] = nil
    number_of_slices = number_of_slices - 1
  end
  table.insert(own, name)
  named_by[caller], slices[name], number_of_slices = own, true, number_of_slices + 1
  return name
end

function envoy_on_request(handle)
  local headers, metadata = handle:headers(), handle:streamInfo():dynamicMetadata()
  local slice = headers:get("x-segserve-slice")
  local caller = metadata:get("segserve.caller")
  if SLICE_BY_CALLER and slice == nil and caller ~= nil and caller["name"] ~= nil then
    slice = printable(string.match(caller["name"], ":(.*)"))
    headers:add("x-segserve-slice", slice)
  end
  if slice ~= nil then metadata:set(COUNTED, "slice", string.sub(slice, 1, 64)) end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get("grpc-status")
  if headers:get("x-segserve-revision") == nil or headers:get(":status") ~= "200" then return end
  if status ~= nil and status ~= "0" then return end
  local metadata = handle:streamInfo():dynamicMetadata()
  local caller, asked = metadata:get("segserve.caller"), metadata:get(COUNTED)
  local name = counted_caller(printable(caller and caller["name"]))
  metadata:set(COUNTED, "caller", name)
  metadata:set(COUNTED, "slice", counted_slice(printable(asked and asked["slice"]), name))
  metadata:set(COUNTED, "is_counted", true)
end
