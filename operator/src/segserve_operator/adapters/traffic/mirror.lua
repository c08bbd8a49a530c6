-- Chooses requests of which the comparator, or the capture service, gets a copy, and writes its CLUSTER into HEADER.
-- The route's metadata say which percentage of a model's requests it is, and how many a second at most.

local left = {}  -- by model: copies that may be made now, and the time of the last look; of this worker

local function may_copy(model, rate, now_ms)
  local known = left[model] or {copies = math.max(1, rate), at_ms = now_ms}
  local more = rate * math.max(0, now_ms - known.at_ms) / 1000
  known.copies, known.at_ms = math.min(math.max(1, rate), known.copies + more), now_ms
  left[model] = known
  if known.copies < 1 then return false end
  known.copies = known.copies - 1
  return true
end

function envoy_on_request(handle)
  local headers, said = handle:headers(), handle:metadata()
  local percent, rate = said:get("percent"), said:get("requests_per_s")
  if percent == nil or math.random() * 100 >= percent then return end
  if not may_copy(headers:get("x-segserve-model"), rate, handle:timestamp()) then return end
  headers:replace(HEADER, CLUSTER)
end
