-- The load: tools/call, every request with an id of its own, sessions in turn. What comes back is
-- checked: each id is answered once, with the result that the upstream gives.
--
-- Arguments: the tool, and a file with one session id per line, empty for none. The figures go to the
-- file that BENCH_REPORT names.

local threads = {}

function setup(thread)
   thread:set("number", #threads)
   threads[#threads + 1] = thread
end

function init(args)
   tool = args[1]
   sessions = {}
   for line in io.lines(args[2]) do
      sessions[#sessions + 1] = line
   end
   ident = number * 1000000000
   waiting = {}
   wrong = 0
   answered = 0
end

function request()
   ident = ident + 1
   waiting[ident] = true
   local session = sessions[ident % #sessions + 1]
   local headers = {
      ["Content-Type"] = "application/json",
      ["Accept"] = "application/json, text/event-stream",
   }
   if session ~= "" then
      headers["Mcp-Session-Id"] = session
      headers["MCP-Protocol-Version"] = "2025-11-25"
   end
   local body = '{"jsonrpc":"2.0","id":' .. ident
      .. ',"method":"tools/call","params":{"name":"' .. tool .. '","arguments":{"n":' .. ident .. '}}}'
   return wrk.format("POST", nil, headers, body)
end

function response(status, headers, body)
   local id = tonumber(string.match(body, '"id":%s*(%d+)'))
   -- Some write the id after the result.
   if id == nil then
      id = tonumber(string.match(string.sub(body, -100), '"id":%s*(%d+)'))
   end
   local good = status == 200 and id and waiting[id] and string.find(body, '"bench ', 1, true)
      and not string.find(string.sub(body, -200), '"isError":%s*true')
   if good then
      answered = answered + 1
   else
      wrong = wrong + 1
      if wrong == 1 then
         io.stderr:write("unexpected: ", status, " ", string.sub(body, 1, 300), "\n")
      end
   end
   if id then
      waiting[id] = nil
   end
end

function done(summary, latency, requests)
   local answered, wrong = 0, 0
   for _, thread in ipairs(threads) do
      answered = answered + thread:get("answered")
      wrong = wrong + thread:get("wrong")
   end
   local errors = summary.errors
   local file = io.open(os.getenv("BENCH_REPORT"), "w")
   file:write(string.format(
      '{"answered": %d, "wrong": %d, "microseconds": %d, "broken": %d, "timeouts": %d, '
      .. '"p50": %f, "p99": %f, "max": %f}\n',
      answered, wrong, summary.duration, errors.connect + errors.read + errors.write,
      errors.timeout, latency:percentile(50), latency:percentile(99), latency.max))
   file:close()
end
