# shellcheck shell=bash
# Sourced by every script in this folder: where things are kept, packages, Python environments, background
# programs. What belongs to one part only (Kubernetes, S3, …) does not belong here.
set -Eeuo pipefail
SAID=9 # the exit status of what has said already why it ended
trap '[ $? = $SAID ] || echo "clusters: ${0##*/} stopped at line $LINENO: \`$BASH_COMMAND\` failed" >&2' ERR

export CLUSTERS
CLUSTERS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${FERROFLOW_CLUSTERS_CACHE:-$HOME/.cache/ferroflow/clusters}
LOGS=$CACHE/logs
RUN=$CACHE/run
DATA=$CACHE/data
POD_HOST=10.88.0.1        # this machine as pods see it: the bridge `ferroflow0`
CONTAINER_HOST=172.17.0.1 # this machine as Batch's containers see it: Docker's bridge
export POD_HOST CONTAINER_HOST PIP_DISABLE_PIP_VERSION_CHECK=1 DEBIAN_FRONTEND=noninteractive
mkdir -p "$LOGS" "$RUN" "$DATA"

say() { echo "clusters: $*" >&2; }

fail() {
  say "$*"
  exit "$SAID"
}

need_root() { # WHAT
  [ "$(id -u)" = 0 ] || fail "$1 needs root: it starts containers; run this as root or give your own (see tests/clusters/README.md)"
}

# --- packages -------------------------------------------------------------------------------------------

installed() { [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null)" = 'ii ' ]; }

need_packages() { # PACKAGE...: installs Debian packages that are missing, and starts none of their services
  local missing=() package
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  (exec 8>"$RUN/apt.lock" && flock 8 && install_packages "${missing[@]}")
}

need_command() { # COMMAND PACKAGE: whatever gives the command will do
  command -v "$1" >/dev/null || need_packages "$2"
}

install_packages() { # PACKAGE...
  command -v apt-get >/dev/null || fail "these Debian packages are missing and there is no apt-get: $*"
  need_root "installing the Debian packages $*"
  say "installing $*"
  local log=$LOGS/apt.log policy='' package missing=() # another part may have installed some while this one waited
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  set -- "${missing[@]}"
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
  fi
  local result=0
  { apt-get update -q && apt-get install -y -q --no-install-recommends "$@"; } >>"$log" 2>&1 || result=$?
  [ -z "$policy" ] || rm -f "$policy"
  [ "$result" = 0 ] || fail "apt-get could not install $*; see $log"
}

python_command() { # prints a Python >= 3.11 that can make virtual environments
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3; do
    [ -n "$candidate" ] && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$candidate" && return
  done
  need_packages python3 python3-venv
  echo /usr/bin/python3
}

venv() { echo "$CACHE/venvs/$1"; }

# A virtual environment per tool, since their requirements disagree. A file in it says that it is complete.
need_venv() { # NAME REQUIREMENT...: its folder is $(venv NAME)
  local folder log=$LOGS/pip-$1.log python
  folder=$(venv "$1")
  shift
  if [ "$(cat "$folder/complete" 2>/dev/null)" != "$*" ]; then
    python=$(python_command)
    say "installing $* from PyPI"
    rm -rf "$folder"
    mkdir -p "$CACHE/venvs"
    { "$python" -m venv "$folder" && "$folder/bin/pip" install --quiet "$@"; } >"$log" 2>&1 || fail "pip could not install $*; see $log"
    echo "$*" >"$folder/complete"
  fi
}

# --- background programs --------------------------------------------------------------------------------
# A program is remembered by its id and the moment it started, so that an id used again is never killed.

started_at() { # PID: the kernel's start time; fails when there is no such process or only its zombie
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  # shellcheck disable=SC2086 # the words are wanted
  set -- $stat
  [ "$1" != Z ] || return 1
  echo "${20}"
}

program_runs() { # NAME
  local pid start
  read -r pid start 2>/dev/null <"$RUN/$1.pid" || return 1
  [ "$(started_at "$pid")" = "$start" ]
}

start_program() { # NAME COMMAND...: its output goes to $LOGS/NAME.log; nothing happens when it runs already
  local name=$1 pid
  shift
  program_runs "$name" && return
  find "$LOGS" -name "$name.log" -size +20M -exec mv {} {}.old \;
  echo "--- $(date -Is) $*" >>"$LOGS/$name.log"
  setsid "$@" >>"$LOGS/$name.log" 2>&1 </dev/null 9>&- &
  pid=$!
  echo "$pid $(started_at "$pid")" >"$RUN/$name.pid"
}

signal_program() { # SIGNAL NAME
  local pid start
  program_runs "$2" || { echo "$2 does not run" >&2 && return 1; }
  read -r pid start <"$RUN/$2.pid"
  kill "-$1" "$pid"
}

stop_program() { # NAME [SECONDS]: SIGTERM to it, SIGKILL to its process group when it is gone or after SECONDS (10)
  local pid start limit=$((${2:-10} * 10))
  if program_runs "$1"; then
    read -r pid start <"$RUN/$1.pid"
    kill -TERM "$pid" 2>/dev/null || true
    while program_runs "$1" && [ $((limit--)) -gt 0 ]; do sleep 0.1; done
    kill -KILL -- "-$pid" 2>/dev/null || true
  fi
  rm -f "$RUN/$1.pid"
}

wait_until() { # SECONDS PROGRAM COMMAND...: until COMMAND succeeds; stops at once when PROGRAM is gone
  local seconds=$1 program=$2 begin=$SECONDS
  shift 2
  until "$@" >/dev/null 2>&1; do
    program_runs "$program" || fail "$program stopped while starting: $(tail -n 3 "$LOGS/$program.log" | cut -c1-300) (all of it in $LOGS/$program.log)"
    [ $((SECONDS - begin)) -lt "$seconds" ] || fail "$program was not ready within $seconds s; see $LOGS/$program.log"
    sleep 0.1
  done
}

need_free_port() { # PORT WHAT
  if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then
    fail "port $1, which $2 needs, is taken by another program; stop that, or give your own (see tests/clusters/README.md)"
  fi
}

answers() { curl --silent --output /dev/null --max-time 2 --noproxy '*' "$@"; } # whatever the status

# --- one at a time --------------------------------------------------------------------------------------

one_at_a_time() { # NAME: two test processes may ask for the same part at once; the second waits
  [ "${CLUSTERS_LOCKED:-}" = "$1" ] && return
  exec 9>"$RUN/$1.lock"
  flock 9
  export CLUSTERS_LOCKED=$1
}

export_line() { printf 'export %s=%q\n' "$1" "$2"; } # NAME VALUE

# --- a part ---------------------------------------------------------------------------------------------
# Each script sets PART, SETTING (the variable by which a user gives an own one), HERE (its value when ours runs) and
# PROGRAMS, defines build, start, stop_all, describe, env_ours and, where more than SETTING matters, env_given, and ends
# with `part_main "$@"`.

given() { [ -n "$SETTING" ] && [ -n "${!SETTING:-}" ] && [ "${!SETTING}" != "$HERE" ]; }

all_run() {
  local program
  for program in "${PROGRAMS[@]}"; do program_runs "$program" || return 1; done
}

ready() { [ -f "$RUN/$PART.ready" ] && all_run; }

part_up() {
  given && say "$PART: using yours ($SETTING=${!SETTING})" && return
  ready && return
  one_at_a_time "$PART"
  ready && return
  local begin=$SECONDS
  build
  say "starting $PART"
  begin=$SECONDS
  part_stop
  trap part_stop EXIT # a start that fails leaves nothing behind
  start
  trap - EXIT
  touch "$RUN/$PART.ready"
  say "$PART is up in $((SECONDS - begin)) s: $(describe)"
}

part_stop() {
  rm -f "$RUN/$PART.ready"
  stop_all
}

part_status() {
  local program missing=()
  given && echo "yours: $SETTING=${!SETTING}" && return
  ready && echo "up: $(describe)" && return
  for program in "${PROGRAMS[@]}"; do program_runs "$program" || missing+=("$program"); done
  if [ ${#missing[@]} = 0 ]; then
    echo starting
  elif [ ${#missing[@]} = ${#PROGRAMS[@]} ]; then
    echo down
  else
    echo "not running: ${missing[*]}"
  fi
  return 1
}

env_given() { export_line "$SETTING" "${!SETTING}"; }

part_main() { # VERB
  case ${1:-} in
    build) one_at_a_time "$PART" && build ;;
    up) part_up ;;
    down) one_at_a_time "$PART" && part_stop ;;
    status) part_status || exit "$SAID" ;;
    env) if given; then env_given; else env_ours; fi ;;
    *) fail "say one of: build, up, down, status, env" ;;
  esac
}
