//! Updates the tables in the pages of `docs` from the result files.
//!
//! In a page a table stands between `<!-- results: NAME -->` and `<!-- end -->`; everything between them is replaced. The
//! name is that of a scenario, `bars` for the summary, `short` for a few rows of `beside`, or a scenario and the beginning
//! of its cases. In the last form the table has a row for each case.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::bars;
use crate::names::case::{BUSY_CALLS, ONE_CHANNEL, ONE_STREAM, STORM_FAST_APP};
use crate::names::{BESIDE, ON_DEMAND};
use crate::report::{Row, Stored, distinct, number};

const BEGIN: &str = "<!-- results: ";
const BEGIN_END: &str = " -->\n";
const END: &str = "<!-- end -->";

/// A page, or a folder in which all files are pages.
const PAGES: [&str; 3] = ["README.md", "docs/PERFORMANCE.md", "docs/performance"];

/// The rows of the short table: label, case, figure.
const SHORT: [(&str, &str, &str); 8] = [
    (
        "memory of an idle connection, 1 subscription",
        ONE_CHANNEL,
        "user bytes per connection",
    ),
    (
        "the same with what the kernel holds for it",
        ONE_CHANNEL,
        "whole system, bytes per connection",
    ),
    (
        "one stream, 15,000 subscribers, 200 B: deliveries per second",
        ONE_STREAM,
        "deliveries/s",
    ),
    ("CPU of a delivery", ONE_STREAM, "server CPU per delivery"),
    (
        "CPU of a perform through the app",
        BUSY_CALLS,
        "server CPU per perform",
    ),
    (
        "5,000 clients come back at once: all subscribed",
        STORM_FAST_APP,
        "all subscribed again",
    ),
    (
        "CPU of a client that comes back: upgrade, connect, subscribe",
        STORM_FAST_APP,
        "server CPU per connection",
    ),
    (
        "start to the first `/health` 200",
        ONE_CHANNEL,
        "start to healthy",
    ),
];

/// Updates the pages in place.
pub fn renew_pages() {
    for page in pages().expect("the pages are in the repository") {
        renew_page(&page);
    }
}

fn pages() -> io::Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for page in PAGES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
        if !path.is_dir() {
            pages.push(path);
            continue;
        }
        for file in fs::read_dir(path)? {
            pages.push(file?.path());
        }
    }
    pages.sort();
    Ok(pages)
}

fn renew_page(path: &Path) {
    let renew = || -> io::Result<()> {
        let page = fs::read_to_string(path)?;
        fs::write(path, renewed(&page, table_of))
    };
    match renew() {
        Ok(()) => println!("renewed: {}", path.display()),
        Err(error) => eprintln!("cannot renew {}: {error}", path.display()),
    }
}

/// The page with the output of `table` between its marks. Where `table` returns nothing, the text stays.
fn renewed(page: &str, table: impl Fn(&str) -> Option<String>) -> String {
    let mut text = String::with_capacity(page.len());
    let mut rest = page;
    while let Some(begin) = rest.find(BEGIN) {
        let name_at = begin + BEGIN.len();
        let Some(name_end) = rest[name_at..].find(BEGIN_END) else {
            break;
        };
        let body_at = name_at + name_end + BEGIN_END.len();
        let Some(end) = rest[body_at..].find(END) else {
            break;
        };
        text.push_str(&rest[..body_at]);
        match table(&rest[name_at..name_at + name_end]) {
            Some(table) => text.push_str(&table),
            None => text.push_str(&rest[body_at..body_at + end]),
        }
        text.push_str(END);
        rest = &rest[body_at + end + END.len()..];
    }
    text.push_str(rest);
    text
}

fn table_of(name: &str) -> Option<String> {
    match name {
        "bars" => return Some(bars::markdown()),
        "short" => return short(&Stored::read(BESIDE)?),
        _ => {}
    }
    match name.split_once(' ') {
        Some((scenario, begin)) => {
            let stored = Stored::read(scenario)?;
            Some(measured_on(scenario, &stored) + &by_case(&stored.rows, &format!("{begin}: ")))
        }
        None => Some(markdown(name, &Stored::read(name)?)),
    }
}

/// A row for each case that begins like this and each server (named if there are several); a column for each figure.
pub fn by_case(rows: &[Row], begin: &str) -> String {
    let rows: Vec<(&str, &Row)> = rows
        .iter()
        .filter_map(|row| Some((row.case.strip_prefix(begin)?, row)))
        .collect();
    let several = distinct(rows.iter().map(|(_, row)| &row.server)).len() > 1;
    let named = |row: &Row| match row.unit.as_str() {
        "" => row.metric.clone(),
        unit => format!("{}, {unit}", row.metric),
    };
    let figures: Vec<String> = rows.iter().map(|(_, row)| named(row)).collect();
    let figures = distinct(figures.iter());
    let mut text = format!("\n| | {} |\n| --- |", figures.join(" | "));
    let _ = writeln!(text, "{}", " --- |".repeat(figures.len()));
    let together = |one: &(&str, &Row), other: &(&str, &Row)| {
        (one.0, &one.1.server) == (other.0, &other.1.server)
    };
    for group in rows.chunk_by(together) {
        let (case, row) = group[0];
        let _ = match several {
            true => write!(text, "| {case}, {} |", row.server),
            false => write!(text, "| {case} |"),
        };
        for figure in &figures {
            let row = group.iter().find(|(_, row)| named(row) == *figure);
            let _ = write!(
                text,
                " {} |",
                row.map_or(String::new(), |(_, row)| row.spread())
            );
        }
        text.push('\n');
    }
    text.push('\n');
    text
}

/// A few figures next to another server's, one row each; `None` when no other server was measured.
fn short(stored: &Stored) -> Option<String> {
    let rows = short_rows(stored);
    if rows.is_empty() {
        return None;
    }
    let mut text = format!(
        "\n| | ringcable | {} | |\n| --- | ---: | ---: | --- |\n",
        stored.field("peer")
    );
    for [what, ours, theirs, ratio] in rows {
        let _ = writeln!(text, "| {what} | {ours} | {theirs} | {ratio} |");
    }
    Some(text + &command_and_machine(BESIDE, stored) + "Medians of the runs.\n\n")
}

/// Label, ringcable's median, the other server's median, and how they compare.
fn short_rows(stored: &Stored) -> Vec<[String; 4]> {
    let row = |server: &str, case: &str, metric: &str| {
        stored
            .rows
            .iter()
            .find(|row| (&*row.server, &*row.case, &*row.metric) == (server, case, metric))
    };
    let filled = SHORT.iter().filter_map(|(what, case, metric)| {
        let (ours, theirs) = (row("ringcable", case, metric)?, row("peer", case, metric)?);
        Some([
            (*what).to_owned(),
            shown(ours),
            shown(theirs),
            compared(ours.median(), theirs.median()),
        ])
    });
    filled.collect()
}

fn shown(row: &Row) -> String {
    let unit = match row.unit.as_str() {
        // The row's label already says it.
        "1/s" => "",
        unit => unit,
    };
    format!("{} {unit}", number(row.median()))
        .trim_end()
        .to_owned()
}

fn compared(ours: f64, theirs: f64) -> String {
    if ours <= theirs {
        format!("{:.1} times less", theirs / ours)
    } else {
        format!("{:.1} times more", ours / theirs)
    }
}

/// A line about the machine and the versions, and about the meaning of the cells.
fn measured_on(scenario: &str, stored: &Stored) -> String {
    command_and_machine(scenario, stored) + "Median (min–max) of the runs.\n"
}

fn command_and_machine(scenario: &str, stored: &Stored) -> String {
    let commit = stored.field("commit");
    let feature = if ON_DEMAND.contains(&scenario) {
        " --features experiments"
    } else {
        ""
    };
    format!(
        "\n`cargo bench --bench load{feature} -- {}`, {}, commit {}{}, Linux {}, {}, {} cores.\n",
        if stored.field("options").is_empty() {
            scenario
        } else {
            stored.field("options")
        },
        stored.field("date"),
        &commit[..commit.len().min(10)],
        if stored.document["dirty"] == true {
            " with changes"
        } else {
            ""
        },
        stored.field("kernel"),
        stored.field("cpu"),
        stored.document["cores"],
    )
}

/// A line about the measurement, and one table that folds away: a row for each figure, a column for each server.
fn markdown(scenario: &str, stored: &Stored) -> String {
    let servers = distinct(stored.rows.iter().map(|row| &row.server));
    let mut text = measured_on(scenario, stored);
    text.push_str("\n<details><summary>All figures</summary>\n\n");
    let _ = writeln!(text, "| case | figure | {} |", servers.join(" | "));
    let _ = writeln!(text, "| --- | --- |{}", " --- |".repeat(servers.len()));
    for case in distinct(stored.rows.iter().map(|row| &row.case)) {
        let of_case = || stored.rows.iter().filter(|row| row.case == case);
        for (index, metric) in distinct(of_case().map(|row| &row.metric))
            .into_iter()
            .enumerate()
        {
            let unit = of_case()
                .find(|row| row.metric == metric)
                .map_or("", |row| row.unit.as_str());
            let unit = if unit.is_empty() {
                String::new()
            } else {
                format!(", {unit}")
            };
            let _ = write!(
                text,
                "| {} | {metric}{unit} |",
                if index == 0 { case } else { "" }
            );
            for server in &servers {
                let row = of_case().find(|row| row.metric == metric && row.server == *server);
                let _ = write!(text, " {} |", row.map_or(String::new(), |row| row.spread()));
            }
            text.push('\n');
        }
    }
    text.push_str("\n</details>\n\n");
    text
}
