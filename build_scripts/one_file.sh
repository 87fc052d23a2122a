#!/bin/sh
main() {        # a function, so that a shell that gets only a part of it runs nothing of it
# @TITLE@: a program in one file. What follows this text is the folder that it is made of, packed; the first start
# unpacks that into a folder of yours, every start runs it there. LLAMA_SRV_UNPACK=DIR names the folder.
# build_scripts/one_file.py puts the two together. The sum is over this text without the line of the sum and over the
# packed folder, so a changed bit anywhere is found before anything is unpacked, and the folder is named after it.
set -u
head=@HEAD@ size=@SIZE@ glibc=@GLIBC@ found='' tried='' new=''
crc='@CRC@'
sum=@SUM@
id=${sum%"${sum#????????????????}"}
case $0 in /*) file=$0 ;; *) file=$PWD/$0 ;; esac
path=${PATH-}
PATH=${PATH:+$PATH:}/usr/bin:/bin       # for the tools used here; the program gets what was there

complain() { printf '%s\n' "llama-srv: $*" >&2; exit 1; }

each() {        # calls $1 with the folders to look at, until one has been found
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

verify() {      # ends the program unless the file is what it was when it was made
    wanted=$((head + size)) there=$(($(wc -c <"$file")))
    [ "$there" -ge "$wanted" ] || complain "$file is incomplete ($there of $wanted bytes): get it again"
    if command -v sha256sum >/dev/null 2>&1; then got=$(content sum | sha256sum)
    elif command -v shasum >/dev/null 2>&1; then got=$(content sum | shasum -a 256)
    elif command -v openssl >/dev/null 2>&1; then got=$(content sum | openssl dgst -sha256 -r)
    else got=$(content '[cs][ru][cm]' | cksum) sum=${crc%% *}
    fi
    [ "${got%%[!0-9a-f]*}" = "$sum" ] || complain "$file is damaged: get it again"
}

fill() {        # unpacks into the folder $1, under another name first: what is there is whole
    [ -z "$found" ] || return 0
    why="can't be made"
    mkdir -p -m 700 "$1" 2>/dev/null
    if [ -d "$1" ]; then
        why="belongs to somebody else"
        [ -O "$1" ] && why="can't be written to" && new=$(mktemp -d "$1/.new-XXXXXX" 2>/dev/null)
    fi
    if [ -n "$new" ]; then
        why="is on a file system that runs no programs (noexec)"
        if printf '#!/bin/sh\n' >"$new/probe" && chmod 700 "$new/probe" && "$new/probe" 2>/dev/null; then
            why="has no room for @ROOM@ MB"
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
    [ -r "$file" ] || complain "$file can't read itself: make it readable (chmod +r)"
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
[ -n "$found" ] || complain "there is no folder to unpack into, once, @ROOM@ MB:$tried
Name one with LLAMA_SRV_UNPACK=DIR, or take @ARCHIVE@, which runs where it lies."
LLAMA_SRV_FILE=$file
PATH=$path
export LLAMA_SRV_FILE
exec "$found/llama-srv" "$@"
}
main "$@"
