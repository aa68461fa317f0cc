"""Speaks with bash, zsh and fish about completions: reads the line that an operator types, and writes what may follow.

click's own scripts lack three things: bash and fish don't quote a name with spaces, and zsh fails at each second try.
"""

import os
import string
from dataclasses import dataclass
from typing import Final

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class

_PLAIN: Final = frozenset(string.ascii_letters + string.digits + "_-.,/+%")
"""ASCII letters that bash takes for nothing else."""
_BREAKS: Final = frozenset(":=@<>;|&(")
"""Letters after which bash completes another word, though they end no word."""
_BETWEEN: Final = frozenset(" \t\n")
_ESCAPED_IN_DOUBLE: Final = frozenset('"\\$`')

_BASH: Final = """\
%(complete_func)s() {
    local kind value
    COMPREPLY=()
    while IFS=',' read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" %(complete_var)s=bash_complete "$1")
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""
_ZSH: Final = """\
#compdef %(prog_name)s
compdef %(complete_func)s %(prog_name)s

%(complete_func)s() {
    local -a response described plain
    local kind value help
    response=("${(@f)$(env COMP_LINE="${(j: :)words[1,CURRENT]}" %(complete_var)s=zsh_complete %(prog_name)s)}")
    for kind value help in "${(@)response}"; do
        case $kind in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain) if [[ $help == _ ]]; then plain+=("$value"); else described+=("$value:$help"); fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
}

# As a file of $fpath, zsh runs the script in place of the function, at the first call alone.
if [[ $funcstack[1] == _%(prog_name)s ]]; then
    %(complete_func)s "$@"
fi
"""
_FISH: Final = """\
function %(complete_func)s
    set -l line (commandline -cp | string collect)
    for each in (env COMP_LINE=$line %(complete_var)s=fish_complete %(prog_name)s)
        set -l found (string split -m 1 , -- $each)
        switch $found[1]
            case dir
                __fish_complete_directories $found[2]
            case file
                __fish_complete_path $found[2]
            case plain
                printf '%%s\\n' $found[2]
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


@dataclass(frozen=True, slots=True)
class Typed:
    """Holds a line up to the cursor, read as its shell reads it."""

    words: tuple[str, ...]
    """Without the last, which is still typed."""
    current: str
    quote: str
    """The quotation mark that is open in the last word; empty for none."""
    kept: str
    """Beginning of the last word that bash leaves as it is."""


def read(line: str, *, of_fish: bool = False) -> Typed:
    """Reads a line that may end within a word. In fish, a backslash may stand before ' and \\ in single quotes, too."""
    words, current, quote, kept, begun, at = list[str](), "", "", "", False, 0
    while at < len(line):
        letter, following = line[at], line[at + 1 : at + 2]
        at += 1
        if letter == "\\" and _escapes(quote, following, of_fish=of_fish):
            current, begun, at = current + following, True, at + 1
        elif quote:
            current, quote = (current, "") if letter == quote else (current + letter, quote)
        elif letter in "'\"":
            quote, begun, kept = letter, True, current
        elif letter in _BETWEEN:
            words += [current] if begun else []
            current, kept, begun = "", "", False
        else:
            current, begun = current + letter, True
            kept = current if letter in _BREAKS else kept
    return Typed(tuple(words), current, quote, kept)


def _escapes(quote: str, following: str, *, of_fish: bool) -> bool:
    if quote == "'":
        return of_fish and following in ("'", "\\")
    return not quote or following in _ESCAPED_IN_DOUBLE


def quoted(text: str, quote: str) -> str:
    """Writes a text for bash, behind a quotation mark that may be open."""
    match quote:
        case "'":
            written = text.replace("'", "'\\''")
        case '"':
            written = "".join(f"\\{letter}" if letter in _ESCAPED_IN_DOUBLE else letter for letter in text)
        case _:
            return "".join(each if each in _PLAIN or not each.isascii() else f"\\{each}" for each in text)
    return f"{written}{quote}" if written.endswith(quote) else written  # where readline takes that mark for the last


class _Shell(ShellComplete):
    """Reads the line once, for the words and for the values."""

    def get_completion_args(self) -> tuple[list[str], str]:
        self.typed = read(os.environ["COMP_LINE"], of_fish=self.name == "fish")
        return list(self.typed.words[1:]), self.typed.current

    def whole(self, item: CompletionItem) -> str:
        """Returns what is to stand in place of the last word: of `--option=value`, click tells the value alone."""
        option, equals, _ = self.typed.current.partition("=")
        value = str(item.value)
        return f"{option}={value}" if equals and option.startswith("--") and item.type == "plain" else value


class Bash(_Shell):
    """Writes values as bash is to put them into the line."""

    name = "bash"
    source_template = _BASH

    def format_completion(self, item: CompletionItem) -> str:
        if item.type != "plain":
            return f"{item.type},"
        value = self.whole(item)
        if not value.startswith(self.typed.kept):
            return "none,"
        return f"plain,{quoted(value.removeprefix(self.typed.kept), self.typed.quote)}"


class Zsh(_Shell):
    """Writes three lines for each value, which zsh quotes."""

    name = "zsh"
    source_template = _ZSH

    def format_completion(self, item: CompletionItem) -> str:
        value, told = self.whole(item), item.help or "_"
        if item.help:  # a colon would end the value
            value = value.replace("\\", "\\\\").replace(":", "\\:")
        return f"{item.type}\n{value or '_'}\n{told}"


class Fish(_Shell):
    """Writes each value with its explanation; fish quotes it."""

    name = "fish"
    source_template = _FISH

    def format_completion(self, item: CompletionItem) -> str:
        told = f"\t{item.help}" if item.help else ""
        return f"{item.type},{self.whole(item)}{told}"


SHELLS: Final = (Bash, Zsh, Fish)


def register() -> None:
    """Has click ask these classes in place of its own."""
    for shell in SHELLS:
        add_completion_class(shell)
