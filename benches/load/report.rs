//! Results: collects one sample per run, shows medians with their spread, stores the raw samples as JSON.
//!
//! A figure is named by (server, case, metric). Scenarios call [`Report::sample`] once for each figure in each run, and
//! [`Report::finish`] at the end. `plot` and `tables` read the JSON through [`Stored`].

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs, io};

use serde_json::{Value, json};

use crate::options::Options;

/// Where the results live, from the root of the repository.
pub const RESULTS_FOLDER: &str = "benches/results";

/// All samples of one figure, in the order of the runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub server: String,
    pub case: String,
    pub metric: String,
    pub unit: String,
    pub values: Vec<f64>,
}

impl Row {
    /// The middle value; with an even number of values the mean of the two middle ones.
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        }
    }

    pub fn min(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn max(&self) -> f64 {
        self.values
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max)
    }

    /// `median (min–max)`, or only the value when there is no spread.
    pub fn spread(&self) -> String {
        let median = number(self.median());
        let (min, max) = (number(self.min()), number(self.max()));
        if min == max {
            median
        } else {
            format!("{median} ({min}–{max})")
        }
    }
}

/// The figures of a running scenario.
pub struct Report {
    scenario: String,
    options: String,
    /// The host when the measurement began.
    host: Host,
    servers: Vec<(String, Vec<String>)>,
    /// Name and version of the other server.
    peer: Option<String>,
    rows: Vec<Row>,
}

impl Report {
    /// `options_shown` is the command line that repeats the measurement.
    pub fn new(scenario: &str, options_shown: impl Into<String>) -> Self {
        Self {
            scenario: scenario.to_owned(),
            options: options_shown.into(),
            host: Host::read(),
            servers: Vec::new(),
            peer: None,
            rows: Vec::new(),
        }
    }

    /// Stores which other server is measured: its file name and its own version text.
    pub fn name_peer(&mut self, binary: &Path) {
        let output = Command::new(binary).arg("--version").output();
        let said = output.map_or(String::new(), |output| {
            String::from_utf8_lossy(&output.stdout).into_owned()
        });
        let version = said.split_whitespace().last().unwrap_or("");
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        self.peer = Some(format!("{name} {version}").trim_end().to_owned());
    }

    /// The same, if the options name another server.
    pub fn name_peer_of(&mut self, options: &Options) {
        if let Some(binary) = &options.peer {
            self.name_peer(binary);
        }
    }

    /// Stores the flags with which a server was started. Only the first call for a name counts.
    pub fn server(&mut self, server: &str, flags: &[String]) {
        if !self.servers.iter().any(|(name, _)| name == server) {
            self.servers.push((server.to_owned(), flags.to_vec()));
        }
    }

    /// Adds the value of one run. Values that are not finite (such as a rate over no time) are dropped.
    pub fn sample(&mut self, server: &str, case: &str, metric: &str, unit: &str, value: f64) {
        if !value.is_finite() {
            return;
        }
        let same =
            |row: &&mut Row| row.server == server && row.case == case && row.metric == metric;
        if let Some(row) = self.rows.iter_mut().find(same) {
            row.values.push(value);
            return;
        }
        self.rows.push(Row {
            server: server.to_owned(),
            case: case.to_owned(),
            metric: metric.to_owned(),
            unit: unit.to_owned(),
            values: vec![value],
        });
    }

    /// All figures so far.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The samples of one figure so far.
    pub fn row(&self, server: &str, case: &str, metric: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.server == server && row.case == case && row.metric == metric)
    }

    /// Prints the table and writes `benches/results/<scenario>.json`.
    pub fn finish(&self) {
        print!("{}", self.table());
        let path = results_folder().join(format!("{}.json", self.scenario));
        match write_json(&path, &self.json()) {
            Ok(()) => println!("raw samples: {}", path.display()),
            Err(error) => eprintln!("cannot write {}: {error}", path.display()),
        }
    }

    /// One block per case, with servers as columns, so that figures measured together are next to each other.
    fn table(&self) -> String {
        let mut text = format!("\n{}: median (min–max)\n", self.scenario);
        for case in distinct(self.rows.iter().map(|row| &row.case)) {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.case == case).collect();
            let servers = distinct(rows.iter().map(|row| &row.server));
            let mut lines = vec![
                [
                    vec![case.to_owned()],
                    servers.iter().map(ToString::to_string).collect(),
                ]
                .concat(),
            ];
            for metric in distinct(rows.iter().map(|row| &row.metric)) {
                let found = |server: &str| {
                    rows.iter()
                        .find(|row| row.metric == metric && row.server == server)
                };
                let unit = rows
                    .iter()
                    .find(|row| row.metric == metric)
                    .map_or("", |row| &row.unit);
                let mut line = vec![if unit.is_empty() {
                    metric.to_owned()
                } else {
                    format!("{metric} [{unit}]")
                }];
                line.extend(
                    servers
                        .iter()
                        .map(|server| found(server).map_or(String::new(), |row| row.spread())),
                );
                lines.push(line);
            }
            text.push('\n');
            text.push_str(&aligned(&lines));
        }
        text
    }

    fn json(&self) -> Value {
        let host = &self.host;
        let servers: serde_json::Map<String, Value> = self
            .servers
            .iter()
            .map(|(name, flags)| (name.clone(), json!(flags)))
            .collect();
        let samples: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({ "server": row.server, "case": row.case, "metric": row.metric, "unit": row.unit, "values": row.values })
            })
            .collect();
        json!({
            "scenario": self.scenario, "options": self.options, "date": host.date, "commit": host.commit,
            "dirty": host.dirty, "kernel": host.kernel, "cpu": host.cpu, "cores": host.cores,
            "servers": servers, "peer": self.peer, "samples": samples,
        })
    }
}

/// A result read back from its file.
pub struct Stored {
    /// The whole document: `commit`, `kernel`, `cpu` and so on.
    pub document: Value,
    pub rows: Vec<Row>,
}

impl Stored {
    /// Reads the result of a scenario; `None` when there is none or the file has another format.
    pub fn read(scenario: &str) -> Option<Self> {
        let text = fs::read_to_string(results_folder().join(format!("{scenario}.json"))).ok()?;
        let document: Value = serde_json::from_str(&text).ok()?;
        let text_of = |value: &Value, key: &str| value[key].as_str().map(str::to_owned);
        let rows = document["samples"]
            .as_array()?
            .iter()
            .filter_map(|sample| {
                let values: Vec<f64> = sample["values"]
                    .as_array()?
                    .iter()
                    .filter_map(Value::as_f64)
                    .collect();
                (!values.is_empty()).then_some(Row {
                    server: text_of(sample, "server")?,
                    case: text_of(sample, "case")?,
                    metric: text_of(sample, "metric")?,
                    unit: text_of(sample, "unit")?,
                    values,
                })
            })
            .collect();
        Some(Self { document, rows })
    }

    /// A field of the document as text, empty when absent.
    pub fn field(&self, key: &str) -> &str {
        self.document[key].as_str().unwrap_or("")
    }
}

/// The folder of the results. Cargo starts benches in the root of the package.
pub fn results_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(RESULTS_FOLDER)
}

/// The distinct texts, in the order of their first occurrence.
pub fn distinct<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut seen: Vec<&str> = Vec::new();
    for text in texts {
        if !seen.contains(&text.as_str()) {
            seen.push(text);
        }
    }
    seen
}

/// A number for readers: three significant digits for small numbers, separated thousands in large ones.
pub fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if size >= 100.0 || value.fract() == 0.0 => 0,
        _ if size >= 10.0 => 1,
        _ if size >= 1.0 => 2,
        _ => 3,
    };
    let plain = format!("{value:.decimals$}");
    let (whole, rest) = plain
        .split_once('.')
        .map_or((plain.as_str(), ""), |(whole, rest)| (whole, rest));
    let mut text = String::new();
    for (index, digit) in whole.char_indices() {
        let left = whole.len() - index;
        if index > 0 && left.is_multiple_of(3) && !whole[..index].ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    if !rest.is_empty() {
        let _ = write!(text, ".{rest}");
    }
    text
}

/// Pads each column to its widest cell.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::from("  ");
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(row, "{cell:<width$}  ");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, format!("{value:#}\n"))
}

/// The machine and the commit of a measurement.
struct Host {
    date: String,
    commit: String,
    dirty: bool,
    kernel: String,
    cpu: String,
    cores: usize,
}

impl Host {
    fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find(|line| line.starts_with("model name"))
            .and_then(|line| line.split_once(':'));
        // Results and pages change with every measurement and do not affect what was measured, so they do not count as
        // changes.
        let changed = git(&[
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "src",
            "benches/load",
            "Cargo.lock",
        ]);
        Self {
            date: today(),
            commit: git(&["rev-parse", "HEAD"]),
            dirty: !changed.is_empty(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            cpu: cpu.map_or("unknown", |(_, model)| model.trim()).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
        }
    }
}

/// Output of git; empty outside a repository.
fn git(arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    output.map_or(String::new(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

/// The date in UTC, as `2026-01-31`.
fn today() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (year, month, day) = civil_date(seconds / 86_400);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Days since 1970-01-01 to (year, month, day), counting years from March so that the leap day is the last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era_day = days % 146_097;
    let era_year = (era_day - era_day / 1_460 + era_day / 36_524 - era_day / 146_096) / 365;
    let year_day = era_day - (365 * era_year + era_year / 4 - era_year / 100);
    let march_month = (5 * year_day + 2) / 153;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era_year + days / 146_097 * 400 + u64::from(month <= 2);
    (year, month, year_day - (153 * march_month + 2) / 5 + 1)
}
