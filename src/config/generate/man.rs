//! The manual page ringcable(1), in the man(7) macros that groff and mandoc share.

use std::fmt::Write;

use super::{Argument, short_form};
use crate::config::deprecated;
use crate::config::options::{OPTIONS, OptionSpec, Section, Support};
use crate::config::value::{OptionKind, Value};

const BEFORE_OPTIONS: &str = r#".SH NAME
ringcable \- Action Cable server that holds very many WebSocket connections
.SH SYNOPSIS
.B ringcable
.RI [ option " ...]"
.SH DESCRIPTION
.B ringcable
serves the Action Cable protocol over WebSocket.
Browsers connect to it; a Rails app answers its RPC calls over HTTP and posts its broadcasts to it.
It takes the options, the variables and the file of anycable\-go 1.6 and runs one pinned thread per core,
on io_uring, or on epoll where io_uring is not allowed.
.PP
It needs to know where the app is:
.B \-\-rpc_host
or
.BR ANYCABLE_RPC_HOST .
.B \-\-demo
needs nothing at all.
.SH OPTIONS
.BI \-\-name= value
and
.BI \-\-name " value"
are the same, and so are one dash and two.
A switch takes a value only behind an equals sign:
.BR \-\-debug=false .
The last one of repeated options wins.
Lists are separated by commas, and blanks around their items do not count.
.PP
A flag beats a variable, a variable beats the file, and the file beats the default.
Presets come last and replace only what equals its default.
"#;

const AFTER_OPTIONS: &str = r#".SH ENVIRONMENT
Every option with a variable names it above.
Of an option with two the first one that is set wins, even when it is empty.
An empty variable is not given for a number, false for a switch, and an empty text otherwise.
Variables that begin with ANYCABLE_ and belong to no option are ignored; the log mentions those that look mistyped.
.TP
.BR FLY_APP_NAME ", " FLY_ALLOC_ID ", " FLY_REGION
All of them together choose the preset fly, unless
.B \-\-presets
says something else.
.TP
.B ANYCABLE_FLY_RPC_APP_NAME
With the preset fly: the app that answers RPC. It leads to gRPC, which is not supported.
.TP
.BR HEROKU_APP_ID ", " HEROKU_DYNO_ID
Both together choose the preset heroku.
.TP
.B NOTIFY_SOCKET
Set by systemd for Type=notify: is told when the server is ready, and when it stops.
.SH FILES
.TP
.IR ./anycable.toml ", " /etc/anycable/anycable.toml
The first of them that exists is read, unless
.B \-\-config\-path
or
.B \-\-ignore\-config\-path
is given.
.B \-\-print\-config
prints such a file.
.PP
Some keys of the file have no flag:
"#;

const AFTER_KEYS: &str = r#".SH SIGNALS
.TP
.BR SIGTERM ", " SIGINT
Tell every client that the server restarts, make the Disconnect calls that are owed, and exit with 0 within
.BR \-\-shutdown_timeout .
A second one ends the process at once.
.TP
.B SIGHUP
Read the files of
.B \-\-ssl_cert
and
.B \-\-ssl_key
again, for new connections. Files that cannot be used change nothing.
.TP
.BR SIGUSR1 ", " SIGUSR2
Are ignored.
.SH EXIT STATUS
.TP
.B 0
A shutdown by a signal, or what was asked for has been printed.
.B \-\-check
and
.BR \-\-check\-config :
nothing stops the host or the configuration.
.TP
.B 1
The server could not start or could not go on. One line on standard error says what was wrong and what to do.
.B \-\-check
and
.BR \-\-check\-config :
something would stop the host or the configuration.
.SH EXAMPLES
.TP
A chat to look at, with nothing else installed:
.nf
\fBringcable \-\-demo\fR
.fi
.TP
Behind a proxy, with the app on port 3000 of the same machine:
.nf
\fBANYCABLE_SECRET=... ringcable \-\-rpc_host=http://localhost:3000/_anycable\fR
.fi
.TP
Before a restart with changed options:
.nf
\fBringcable \-\-check\-config \-\-config\-path=/etc/anycable/anycable.toml\fR
.fi
.TP
Whether this host holds 100,000 connections, and what to change:
.nf
\fBringcable \-\-check 100000\fR
.fi
.TP
What came of file, variables and flags:
.nf
\fBringcable \-\-print\-config\fR
.fi
.TP
Completions for the bash that is running:
.nf
\fBsource <(ringcable \-\-generate=complete\-bash)\fR
.fi
.SH SEE ALSO
.BR io_uring (7),
.BR epoll (7),
.BR ulimit (1p),
.BR systemd.exec (5)
.PP
The folder docs of the source: configuration.md, OPTIONS.md, COMPATIBILITY.md, ARCHITECTURE.md.
"#;

pub fn text() -> String {
    let mut out = format!(
        ".\\\" Made by ringcable --generate=man from the option table.\n\
         .TH RINGCABLE 1 \"\" \"ringcable {}\" \"User Commands\"\n{BEFORE_OPTIONS}",
        env!("CARGO_PKG_VERSION")
    );
    for options in OPTIONS.chunk_by(|left, right| left.section == right.section) {
        let mut flags = options.iter().filter(|option| option.has_flag).peekable();
        if let Some(first) = flags.peek() {
            let title = match first.section {
                Section::General => "GENERAL",
                other => other.title(),
            };
            writeln!(out, ".SS {}", roff(title)).expect("a String takes all");
        }
        for option in flags {
            write_entry(&mut out, &flag_line(option), option);
        }
    }
    out.push_str(AFTER_OPTIONS);
    for option in OPTIONS.iter().filter(|option| !option.has_flag) {
        let line = format!(
            "\\fB{}\\fR = \\fI{}\\fR",
            roff(option.file_key),
            placeholder(option)
        );
        write_entry(&mut out, &line, option);
    }
    out.push_str(AFTER_KEYS);
    out
}

fn flag_line(option: &OptionSpec) -> String {
    let short = short_form(option)
        .map(|letter| format!("\\fB\\-{letter}\\fR, "))
        .unwrap_or_default();
    let value = match Argument::of(option) {
        Argument::Switch => String::new(),
        _ => format!("=\\fI{}\\fR", placeholder(option)),
    };
    format!("{short}\\fB\\-\\-{}\\fR{value}", roff(option.name))
}

fn placeholder(option: &OptionSpec) -> &'static str {
    match option.kind {
        OptionKind::Bool => "true|false",
        OptionKind::Int { .. } => "number",
        OptionKind::SecsOrSwitch => "seconds|true|false",
        OptionKind::Text | OptionKind::Name => "text",
        OptionKind::Word(_) => "word",
        OptionKind::File => "file",
        OptionKind::Path { .. } => "path",
        OptionKind::Paths => "path,...",
        OptionKind::List { separator: ';', .. } => "item;...",
        OptionKind::List { .. } => "item,...",
        OptionKind::Tags => "name:value,...",
        OptionKind::StreamLimits => "tables",
    }
}

fn write_entry(out: &mut String, head: &str, option: &OptionSpec) {
    write!(out, ".TP\n{head}\n{}.\n", roff(option.help)).expect("a String takes all");
    match option.support {
        Support::Works => {}
        Support::NoEffect(why) => sentence(out, &format!("Has no effect: {why}.")),
        Support::Deprecated => {
            sentence(out, deprecated::instead_of(option.name).unwrap_or_default())
        }
        Support::Refused(why) => sentence(out, &format!("Not supported: {why}.")),
    }
    let mut facts = Vec::new();
    if option.default_value() != Value::Bool(false) && !option.default_text.is_empty() {
        facts.push(format!("Default: {}.", option.default_text));
    }
    let variables = option.env_names();
    if !variables.is_empty() {
        facts.push(format!("Variable: {}.", variables.join(", ")));
    }
    if option.has_flag && !option.file_key.is_empty() {
        facts.push(format!("File: {}.", option.file_key));
    }
    if !facts.is_empty() {
        write!(out, ".br\n{}\n", roff(&facts.join(" "))).expect("a String takes all");
    }
}

fn sentence(out: &mut String, text: &str) {
    if !text.is_empty() {
        writeln!(out, "{}", roff(text)).expect("a String takes all");
    }
}

/// Escapes text for roff: dashes can be copied into a shell, and nothing is read as a request or an escape.
fn roff(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    if text.starts_with(['.', '\'']) {
        out.push_str("\\&");
    }
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '"' => out.push_str("\\(dq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_its_sections_in_the_usual_order() {
        let text = text();
        let sections: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix(".SH "))
            .collect();
        assert_eq!(
            sections,
            [
                "NAME",
                "SYNOPSIS",
                "DESCRIPTION",
                "OPTIONS",
                "ENVIRONMENT",
                "FILES",
                "SIGNALS",
                "EXIT STATUS",
                "EXAMPLES",
                "SEE ALSO"
            ]
        );
    }

    #[test]
    fn entries_say_all_there_is_to_an_option() {
        let text = text();
        for entry in [
            ".TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nPrint this list and exit.\n.TP\n",
            ".TP\n\\fB\\-\\-port\\fR=\\fInumber\\fR\nPort of the main listener; 0 lets the kernel choose.\n.br\n\
             Default: 8080. Variable: ANYCABLE_PORT, PORT. File: server.port.\n",
            ".TP\n\\fBstreams.pubsub_channel\\fR = \\fItext\\fR\n",
            "Not supported: there is no embedded NATS server.\n",
            "Has no effect: the Pusher protocol is not served.\n",
            "Deprecated name of jwt_secret.\nUse jwt_secret instead.\n.br\nVariable: ANYCABLE_JWT_ID_KEY.\n",
        ] {
            assert!(text.contains(entry), "{entry}");
        }
    }

    #[test]
    fn no_option_of_the_table_is_a_request_or_needs_more_than_ascii() {
        assert_eq!(roff(".a -b 'c' \\d"), "\\&.a \\-b \\(aqc\\(aq \\ed");
        let text = text();
        assert!(text.is_ascii());
        const REQUESTS: [&str; 14] = [
            ".\\\"", ".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".BR", ".BI", ".RI", ".IR", ".br",
            ".nf", ".fi",
        ];
        for line in text.lines().filter(|line| line.starts_with(['.', '\''])) {
            let request = line.split(' ').next().expect("a word");
            assert!(REQUESTS.contains(&request), "{line}");
        }
    }
}
