//! Renews the tables of `docs/PERFORMANCE.md` from the files of the results.
//!
//! In the page a table stands between `<!-- results: NAME -->` and `<!-- end -->`; all that is between is replaced. The name is that
//! of a scenario, or `bars` for the summary.

use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use crate::bars;
use crate::report::{Stored, distinct};

const BEGIN: &str = "<!-- results: ";
const BEGIN_END: &str = " -->\n";
const END: &str = "<!-- end -->";

/// Renews the page in place.
pub fn renew_page() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/PERFORMANCE.md");
    let renew = || -> io::Result<()> {
        let page = fs::read_to_string(&path)?;
        fs::write(&path, renewed(&page, table_of))
    };
    match renew() {
        Ok(()) => println!("renewed: {}", path.display()),
        Err(error) => eprintln!("cannot renew {}: {error}", path.display()),
    }
}

/// The page with what `table` gives between its marks. Places for which there is nothing stay as they are.
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
    if name == "bars" {
        return Some(bars::markdown());
    }
    Some(markdown(name, &Stored::read(name)?))
}

/// What was measured on what, and one table: a row for each figure, a column for each server.
fn markdown(scenario: &str, stored: &Stored) -> String {
    let servers = distinct(stored.rows.iter().map(|row| &row.server));
    let commit = stored.field("commit");
    let mut text = format!(
        "\n`cargo bench --bench load -- {}`, {}, commit {}{}, Linux {}, {}, {} cores.\n",
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
    );
    let _ = write!(
        text,
        "Median (min–max) of the runs.\n\n| case | figure | {} |\n",
        servers.join(" | ")
    );
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
    text.push('\n');
    text
}
