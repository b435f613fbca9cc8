# until.sh - sourced by the tests of the examples: they wait for a state, so that no time decides what comes out.

until_it() { # until_it COMMAND...: returns when COMMAND holds, or after a minute without it
  local tries=0
  until "$@"; do
    tries=$((tries + 1))
    [ $tries -lt 1200 ] || return 1
    sleep 0.05
  done
}

catches_interrupt() { # catches_interrupt PID: that program, no longer the shell it comes from, has a handler of SIGINT, or has ended
  local status=/proc/$1/status
  kill -0 "$1" 2>/dev/null || return 0
  [ -r "$status" ] || { sleep 1; return 0; } # not Linux
  [ "$(readlink "/proc/$1/exe")" != "$(readlink "/proc/$$/exe")" ] && grep -q '^SigCgt:.*[2367abef]$' "$status"
}
