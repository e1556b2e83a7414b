//! Charts of the results for the pages of `docs/performance`, made from the files in `benches/results`.

mod svg;

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::report::{Stored, distinct, results_folder};
use svg::{Chart, Series};

/// Draws all charts for which there are results, into `docs/images`.
pub fn draw_all() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
    let charts = [
        ("memory-by-connections", memory_by_connections()),
        ("deliveries-by-subscribers", deliveries_by_subscribers()),
        ("churn-memory", churn_memory()),
    ];
    for (name, chart) in charts {
        match chart.and_then(|chart| chart.svg()) {
            Some(svg) => match write(&folder, name, &svg) {
                Ok(path) => println!("drawn: {}", path.display()),
                Err(error) => eprintln!("cannot write {name}: {error}"),
            },
            None => println!("no results for {name} yet"),
        }
    }
}

/// The first part of the time is not in the fitted line, because the server's memory still grows to its working size.
pub const WARM_UP_SHARE: f64 = 0.1;

/// The slope of the least-squares line through the points, and its value at x = 0.
pub fn fitted_line(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len().max(1) as f64;
    let x_mean = points.iter().map(|point| point.0).sum::<f64>() / count;
    let y_mean = points.iter().map(|point| point.1).sum::<f64>() / count;
    let (mut product, mut square) = (0.0, 0.0);
    for (x, y) in points {
        product += (x - x_mean) * (y - y_mean);
        square += (x - x_mean) * (x - x_mean);
    }
    let slope = if square > 0.0 { product / square } else { 0.0 };
    (slope, y_mean - slope * x_mean)
}

fn write(folder: &Path, name: &str, svg: &str) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let path = folder.join(format!("{name}.svg"));
    fs::write(&path, svg)?;
    Ok(path)
}

fn memory_by_connections() -> Option<Chart> {
    let stored = Stored::read("scale")?;
    let parts = [
        ("user memory per connection", "user space"),
        ("kernel memory per connection", "kernel"),
        ("both per connection", "both"),
    ];
    Some(Chart {
        title: "Memory per idle connection".to_owned(),
        x_label: "connections".to_owned(),
        y_label: "bytes per connection".to_owned(),
        log_x: true,
        series: parts
            .iter()
            .flat_map(|(metric, name)| by_number(&stored, metric, "connections", name))
            .collect(),
        marks: vec![(4_900.0, "bar for both: 4,900".to_owned())],
    })
}

fn deliveries_by_subscribers() -> Option<Chart> {
    let stored = Stored::read("fanout")?;
    Some(Chart {
        title: "Deliveries per second, one stream".to_owned(),
        x_label: "subscribers".to_owned(),
        y_label: "deliveries per second".to_owned(),
        log_x: true,
        series: by_number(&stored, "deliveries/s", "subscribers", ""),
        marks: Vec::new(),
    })
}

/// One series per server: medians of a metric over the cases that are called `<number> <noun>`.
fn by_number(stored: &Stored, metric: &str, noun: &str, name: &str) -> Vec<Series> {
    let number = |case: &str| {
        case.strip_suffix(noun)?
            .trim()
            .replace(',', "")
            .parse::<f64>()
            .ok()
    };
    let rows = || {
        stored
            .rows
            .iter()
            .filter(|row| row.metric == metric && number(&row.case).is_some())
    };
    let series = |server: &str| {
        let own = rows().filter(|row| row.server == server);
        let mut points: Vec<_> = own
            .filter_map(|row| Some((number(&row.case)?, row.median())))
            .collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        Series {
            name: if name.is_empty() {
                server.to_owned()
            } else {
                name.to_owned()
            },
            points,
        }
    };
    distinct(rows().map(|row| &row.server))
        .into_iter()
        .map(series)
        .collect()
}

/// The chart of the samples of each second: `seconds,server,private_bytes,…`.
fn churn_memory() -> Option<Chart> {
    let text = fs::read_to_string(results_folder().join("churn.csv")).ok()?;
    let samples: Vec<(String, f64, f64)> = text
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split(',');
            let seconds = fields.next()?.parse().ok()?;
            let server = fields.next()?.to_owned();
            let bytes: f64 = fields.next()?.parse().ok()?;
            Some((server, seconds, bytes / 1_048_576.0))
        })
        .collect();
    let mut series = Vec::new();
    for server in distinct(samples.iter().map(|sample| &sample.0)) {
        let own = samples.iter().filter(|sample| sample.0 == server);
        let points: Vec<(f64, f64)> = own
            .map(|(_, seconds, mebibytes)| (seconds / 60.0, *mebibytes))
            .collect();
        let settled = &points[(points.len() as f64 * WARM_UP_SHARE) as usize..];
        let (slope, start) = fitted_line(settled);
        let ends = [settled.first(), settled.last()].into_iter().flatten();
        let fitted = ends
            .map(|(minutes, _)| (*minutes, start + slope * minutes))
            .collect();
        series.push(Series {
            name: server.to_owned(),
            points,
        });
        series.push(Series {
            name: format!("fit: {:+.1} KiB/min", slope * 1024.0),
            points: fitted,
        });
    }
    Some(Chart {
        title: "Private memory while clients come and go".to_owned(),
        x_label: "minutes".to_owned(),
        y_label: "private memory, MiB".to_owned(),
        log_x: false,
        series,
        marks: Vec::new(),
    })
}
