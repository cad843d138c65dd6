# shellcheck shell=sh
# The program inside a sandbox whose image need not have Python: takes one frame, runs the language's command, and says
# how it ended. It speaks the protocol of boot.py, but for the frame, which is a line with the size of a script and that
# script (see `frames.shell_frame`). It needs of its image a POSIX /bin/sh, and cat, dd, mkdir, od, rm, tr and wc.
# An exit code above 128 that is a signal's is told as that signal: a shell knows no difference.

take() { # SIZE FILE: that many bytes of the frame. dd reads once and no more than it should; others read ahead.
  : >"$2"
  have=0
  while [ "$have" -lt "$1" ]; do
    left=$(($1 - have))
    dd bs=$((left < 1048576 ? left : 1048576)) count=1 >>"$2" 2>/dev/null
    before=$have
    have=$(($(wc -c <"$2")))
    [ "$have" -gt "$before" ] || exit 1
  done
}

offer() { # KIND NAME SIZE: what is in /sandbox/out, for `artifacts.Collector`
  printf '%s %d %d\n%s' "$1" "${#2}" "$3" "$2"
}

gather() { # FOLDER: everything below it, as long as there is room
  for file in "$1"/* "$1"/.[!.]* "$1"/..?*; do
    # A pattern that nothing fits stays as it is.
    [ -e "$file" ] || [ -h "$file" ] || continue
    if [ "$count" -le 0 ]; then
      more=M
      return
    fi
    count=$((count - 1))
    name=${file#/sandbox/out/}
    if [ -h "$file" ]; then
      offer L "$name" 0
    elif [ -d "$file" ]; then
      gather "$file"
    elif [ ! -f "$file" ]; then
      offer S "$name" 0
    elif [ ! -r "$file" ]; then
      offer U "$name" 0
    else
      size=$(($(wc -c <"$file")))
      if [ "$size" -gt "$quota" ]; then
        offer Q "$name" "$size"
      else
        offer F "$name" "$size"
        cat "$file"
        quota=$((quota - size))
      fi
    fi
  done
}

LC_ALL=C
umask 022
exec 3>&2 2>/dev/null
printf R
read -r size || exit 0
take "$size" /tmp/.setup
# shellcheck source=/dev/null
. /tmp/.setup
rm /tmp/.setup
exec 4</tmp/.stdin
rm /tmp/.stdin
cd /sandbox || exit 1
secret=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
printf 'S%s' "$secret"
# The secret is this shell's alone: what becomes of the subshell has another memory, and it is not in the environment.
(
  echo 1000 >/proc/self/oom_score_adj
  exec "$@" <&4 4<&- 2>&3 3>&-
)
status=$?
while kill -9 -1; do
  (:) # waits, and with it for those that have no other parent any more
done
kind=E value=$status
if [ "$status" -gt 128 ] && [ "$status" -le 192 ]; then
  kind=K value=$((status - 128))
fi
printf '%s' "$secret" >&3
printf "%s%s\\$(printf '%03o' "$value")" "$secret" "$kind"
read -r quota count || exit "$status"
more=
if [ "$quota" -gt 0 ] && [ -d /sandbox/out ] && [ ! -h /sandbox/out ]; then
  gather /sandbox/out
  printf '%s.' "$more"
fi
exit "$status"
