//! Completions for bash, which has no place to show help texts for the flags.

use std::fmt::Write;

use super::{Argument, offered};
use crate::config::options::OPTIONS;

const BEFORE_CASES: &str = r#"# Completions of ringcable for bash, made by `ringcable --generate=complete-bash`.
# Needs bash 4 and nothing else.

_ringcable() {
    local current=${COMP_WORDS[COMP_CWORD]} option joined='' prefix='' words=''
    COMPREPLY=()
    # --option=value is one word or three, as COMP_WORDBREAKS has it.
    if [[ $current == -*=* ]]; then
        joined=1 option=${current%%=*} prefix=${current%%=*}= current=${current#*=}
    elif [[ $current == = ]]; then
        joined=1 option=${COMP_WORDS[COMP_CWORD - 1]} current=''
    elif ((COMP_CWORD > 1)) && [[ ${COMP_WORDS[COMP_CWORD - 1]} == = ]]; then
        joined=1 option=${COMP_WORDS[COMP_CWORD - 2]}
    else
        option=${COMP_WORDS[COMP_CWORD - 1]}
    fi
    # -option is --option.
    if [[ $option == -[^-]* ]]; then option=-$option; fi
    case $option in
"#;

const AFTER_CASES: &str = r#"    esac
    if [[ ! $words ]]; then
        if [[ $joined ]]; then return; fi
        words='@FLAGS@'
    fi
    mapfile -t COMPREPLY < <(compgen -P "$prefix" -W "$words" -- "$current")
}
complete -F _ringcable ringcable
"#;

pub fn text() -> String {
    let mut out = BEFORE_CASES.to_owned();
    let mut write = |line: String| writeln!(out, "{line}").expect("a String takes all");
    // All flags, also those that are not offered, because a value follows them too.
    let flags = || OPTIONS.iter().filter(|option| option.has_flag);
    for option in flags() {
        if let Argument::Words(words) = Argument::of(option) {
            write(format!(
                "    --{}) words='{}' ;;",
                option.name,
                words.join(" ")
            ));
        }
    }
    let named = |argument: Argument| {
        let names: Vec<String> = flags()
            .filter(|option| Argument::of(option) == argument)
            .map(|option| format!("--{}", option.name))
            .collect();
        names.join(" | ")
    };
    write(format!("    {})", named(Argument::File)));
    write("        compopt -o filenames 2>/dev/null".to_owned());
    write(r#"        mapfile -t COMPREPLY < <(compgen -P "$prefix" -f -- "$current")"#.to_owned());
    write("        return ;;".to_owned());
    write(format!("    {}) return ;;", named(Argument::Text)));
    write(format!("    {})", named(Argument::Switch)));
    write("        if [[ $joined ]]; then words='true false'; fi ;;".to_owned());
    let names: Vec<String> = offered()
        .map(|option| format!("--{}", option.name))
        .collect();
    out.push_str(&AFTER_CASES.replace("@FLAGS@", &names.join(" ")));
    out
}
