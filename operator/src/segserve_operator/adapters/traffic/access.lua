-- A model that the caller may not use does not exist for him: the response is without the headers that its route adds.

function envoy_on_response(handle)
  local decision = handle:streamInfo():dynamicMetadata():get("envoy.filters.http.rbac")
  if decision == nil or decision["enforced_engine_result"] ~= "denied" then return end
  local headers = handle:headers()
  headers:remove("x-segserve-revision")
  headers:remove("x-segserve-group")
  headers:remove("x-segserve-device")
end
