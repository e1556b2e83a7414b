#!/usr/bin/env bash
# What `ringcable --generate=WORD` prints, in the hands of those who read it: bash, zsh, fish, man and mandoc.
#
#   .ci/generated.sh target/release/ringcable
#
# Needs zsh, fish, mandoc, man-db and groff. What bash offers is tested by `cargo test --test integration options`.
set -euo pipefail

binary=$(realpath "${1:?usage: .ci/generated.sh BINARY}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() {
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}

# expect <what> <line> <text>: a whole line of the text.
expect() {
  grep -qxF -- "$2" <<<"$3" || fail "$1: no line '$2' in:"$'\n'"$3"
}

"$binary" --generate=man >ringcable.1
"$binary" --generate=complete-bash >ringcable.bash
"$binary" --generate=complete-zsh >_ringcable
"$binary" --generate=complete-fish >ringcable.fish

# The manual page: no complaint of mandoc, none of groff, and the words are there when it is read. It has no date on purpose: the
# same source gives the same page.
complaints=$(mandoc -Tlint -Wwarning ringcable.1 | grep -v 'missing date') || true
[ -z "$complaints" ] || fail "mandoc: $complaints"
complaints=$(LC_ALL=C.UTF-8 MANROFFSEQ='' MANWIDTH=80 man --warnings -E UTF-8 -l -Tutf8 -Z ringcable.1 2>&1 >/dev/null)
[ -z "$complaints" ] || fail "man: $complaints"
page=$(LC_ALL=C.UTF-8 MANWIDTH=200 man -l ringcable.1 | col -bx)
expect man "       --port=number" "$page"
expect man "              Port of the main listener; 0 lets the kernel choose." "$page"
expect man "SEE ALSO" "$page"
echo "man: mandoc $(dpkg-query -W -f '${Version}' mandoc 2>/dev/null || true), $(man --version)"

bash -n ringcable.bash
shellcheck --shell=bash ringcable.bash
echo "bash: syntax, shellcheck"

# fish says what it would offer, with the help behind a tab.
fish --no-config --no-execute ringcable.fish
offers() {
  fish --no-config -c "source ringcable.fish; complete -C \"$1\""
}
mkdir files
touch files/one.pem
help=$("$binary" --help)
driver=$(grep -oP '^   --driver value +\K.*(?= \(default)' <<<"$help")
expect fish $'--driver\t'"$driver" "$(offers 'ringcable --driv')"
expect fish io_uring "$(offers 'ringcable --driver ' | cut -f1)"
expect fish --driver=epoll "$(offers 'ringcable --driver=e' | cut -f1)"
expect fish files/one.pem "$(offers 'ringcable --ssl_cert files/' | cut -f1)"
[ -z "$(offers 'ringcable --port ')" ] || fail "fish offers something behind --port"
echo "fish: $(fish --version)"

# zsh has no such question; it is typed into, on a terminal of its own.
zsh -n _ringcable
cat >ask.zsh <<'ZSH'
# ask.zsh <typed>: prints what the terminal shows after a tab, until it rests.
zmodload zsh/zpty zsh/datetime
zpty terminal 'COLUMNS=200 LINES=60 TERM=dumb zsh -f -i'
zpty -w terminal "PS1='READY> '; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -D -u; source ./_ringcable; print LOADE''D"
wait_for() {
  local shown='' chunk deadline=$((EPOCHREALTIME + 20))
  while ((EPOCHREALTIME < deadline)); do
    if zpty -rt terminal chunk; then
      shown+=$chunk
      [[ $shown == *${~1}* ]] && { print -r -- $shown; return 0 }
    else
      sleep 0.02
    fi
  done
  print -r -- $shown
  return 1
}
wait_for 'LOADED' >/dev/null || { print -u2 'zsh does not load the completions'; exit 1 }
zpty -w -n terminal "$1"$'\t'
wait_for "$2"
ZSH
# typed <keys> <pattern>: a tab behind the keys shows the pattern.
typed() {
  zsh -f ask.zsh "$1" "$2" >shown || fail "zsh: '$1' and a tab do not show '$2' but:"$'\n'"$(cat shown)"
}
typed 'ringcable --rpc_ho' 'rpc_host='
typed 'ringcable --driver=' 'auto*epoll*io_uring'
typed 'ringcable --driver ' 'auto*epoll*io_uring'
typed 'ringcable --log_' '--log_format*Log format: text or json*--log_level*Log level'
typed 'ringcable --ssl_cert files/o' 'files/one.pem'
typed 'ringcable --demo --driv' '--driver='
echo "zsh: $(zsh --version)"
