#!/bin/sh
main() {        # a function, so that a truncated script runs nothing
# @TITLE@: a program in one file. A packed folder follows this text. The first start unpacks it to your cache folder,
# and every start runs it there. LLAMA_SRV_UNPACK=DIR chooses another folder. Written by build_scripts/one_file.py.
# The sum covers this text (without its own line) and the packed folder, so any change is noticed before anything is
# unpacked. The unpacked folder is named after the sum.
set -u
head=@HEAD@ size=@SIZE@ glibc=@GLIBC@ found='' tried='' new=''
crc='@CRC@'
sum=@SUM@
id=${sum%"${sum#????????????????}"}
case $0 in /*) file=$0 ;; *) file=$PWD/$0 ;; esac
path=${PATH-}
PATH=${PATH:+$PATH:}/usr/bin:/bin       # for the tools used here; the program gets the original PATH

complain() { printf '%s\n' "llama-srv: $*" >&2; exit 1; }

each() {        # calls $1 with each possible folder, until one is found
    if [ -n "${LLAMA_SRV_UNPACK-}" ]; then "$1" "$LLAMA_SRV_UNPACK"; return; fi
    [ -z "${LLAMA_SRV_CACHE-}" ] || "$1" "$LLAMA_SRV_CACHE/programs"
    [ -z "${XDG_CACHE_HOME-}" ] || "$1" "$XDG_CACHE_HOME/llama_srv/programs"
    [ -z "${HOME-}" ] || "$1" "$HOME/.cache/llama_srv/programs"
    [ -z "$found" ] || return
    uid=$(id -u)
    for temp in "${TMPDIR:-/tmp}" /var/tmp; do "$1" "$temp/llama_srv-$uid"; done
}

look() { [ -n "$found" ] || { [ -O "$1" ] && [ -x "$1/$id/llama-srv" ] && found=$1/$id; } || :; }

packed() { tail -c +$((head + 1)) "$file" | head -c "$size"; }

content() { { head -c "$head" "$file" | LC_ALL=C sed "/^$1=/d"; packed; }; }

verify() {      # ends the program if the file is damaged
    wanted=$((head + size)) there=$(($(wc -c <"$file")))
    [ "$there" -ge "$wanted" ] || complain "$file is incomplete ($there of $wanted bytes): download it again"
    if command -v sha256sum >/dev/null 2>&1; then got=$(content sum | sha256sum)
    elif command -v shasum >/dev/null 2>&1; then got=$(content sum | shasum -a 256)
    elif command -v openssl >/dev/null 2>&1; then got=$(content sum | openssl dgst -sha256 -r)
    else got=$(content '[cs][ru][cm]' | cksum) sum=${crc%% *}
    fi
    [ "${got%%[!0-9a-f]*}" = "$sum" ] || complain "$file is damaged: download it again"
}

fill() {        # unpacks to the folder $1, under another name first, so that $1/$id is always complete
    [ -z "$found" ] || return 0
    why="can't be created"
    mkdir -p -m 700 "$1" 2>/dev/null
    if [ -d "$1" ]; then
        why="belongs to another user"
        [ -O "$1" ] && why="can't be written to" && new=$(mktemp -d "$1/.new-XXXXXX" 2>/dev/null)
    fi
    if [ -n "$new" ]; then
        why="is on a file system that doesn't allow programs (noexec)"
        if printf '#!/bin/sh\n' >"$new/probe" && chmod 700 "$new/probe" && "$new/probe" 2>/dev/null; then
            why="doesn't have @ROOM@ MB of free space"
            { packed | gzip -dc 2>/dev/null || : >"$new/cut"; } | tar -xf - -C "$new" 2>/dev/null &&
                [ ! -e "$new/cut" ] && { [ -e "$1/$id" ] || mv "$new/llama-srv" "$1/$id"; } 2>/dev/null
        fi
        rm -rf "$new"
        new=''
    fi
    look "$1"
    tried="$tried
  $1 $why"
}

each look
if [ -z "$found" ]; then
    [ -r "$file" ] || complain "$file isn't readable, so it can't unpack itself: chmod +r"
    verify
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || libc=''
    if [ -n "$glibc" ] && command -v getconf >/dev/null 2>&1; then
        minor=${libc#glibc 2.}
        [ "${minor%%[!0-9]*}" -ge "$glibc" ] 2>/dev/null || complain \
            "this program needs glibc 2.$glibc or newer, this" \
            "system has ${libc:-another C library}: use a newer system, or a program that was built on an older one"
    fi
    trap '[ -z "$new" ] || rm -rf "$new"; exit 130' HUP INT TERM
    each fill
    trap - HUP INT TERM
fi
[ -n "$found" ] || complain "no folder to unpack @ROOM@ MB (needed once):$tried
Choose one with LLAMA_SRV_UNPACK=DIR, or use @ARCHIVE@, which needs no such folder."
LLAMA_SRV_FILE=$file
PATH=$path
export LLAMA_SRV_FILE
exec "$found/llama-srv" "$@"
}
main "$@"
