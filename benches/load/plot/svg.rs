//! A line chart as SVG text, without dependencies. Uses the reader's light or dark scheme.

use std::fmt::Write as _;

use crate::report::number;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
/// The edges of the plot area in the chart.
const LEFT: f64 = 82.0;
const RIGHT: f64 = WIDTH - 36.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = HEIGHT - 58.0;
/// With more points than this, a line has no dots.
const DOTS_MAX: usize = 24;
const TICKS: f64 = 6.0;

/// Colours that most people can tell apart, in both schemes; in addition each series has its own dash. Classes instead of
/// variables, because some programs that show SVG do not support variables.
const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#59636e}
.ground{fill:#fff}.title{font-size:16px;font-weight:600;fill:#1f2328}.label{fill:#1f2328}
.grid{stroke:#d9dee3}.axis{stroke:#59636e}.mark{stroke:#59636e;stroke-dasharray:2 4}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
.s0{stroke:#0b63ce}.s1{stroke:#c2410c}.s2{stroke:#1a7f4b}.s3{stroke:#7c3aed}
.d0{fill:#0b63ce}.d1{fill:#c2410c}.d2{fill:#1a7f4b}.d3{fill:#7c3aed}
@media (prefers-color-scheme:dark){
text{fill:#9198a1}
.ground{fill:#0d1117}.title,.label{fill:#e6edf3}
.grid{stroke:#2d333b}.axis,.mark{stroke:#9198a1}
.s0{stroke:#58a6ff}.s1{stroke:#ff9b5e}.s2{stroke:#4ac98a}.s3{stroke:#c39bff}
.d0{fill:#58a6ff}.d1{fill:#ff9b5e}.d2{fill:#4ac98a}.d3{fill:#c39bff}
}
";
/// One for each colour.
const DASHES: [&str; 4] = ["none", "7 4", "2 3", "9 3 2 3"];

/// One line of a chart.
pub struct Series {
    pub name: String,
    /// (x, y), ascending in x.
    pub points: Vec<(f64, f64)>,
}

/// What to draw. Both axes are linear and start at 0, unless `log_x`.
pub struct Chart {
    pub title: String,
    /// Axis labels, with the unit.
    pub x_label: String,
    pub y_label: String,
    /// For x values over several powers of ten; x must be above 0.
    pub log_x: bool,
    pub series: Vec<Series>,
    /// Horizontal lines for comparison, such as a bar.
    pub marks: Vec<(f64, String)>,
}

impl Chart {
    /// The picture; `None` when there is nothing to draw.
    pub fn svg(&self) -> Option<String> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x_max = points().map(|point| point.0).reduce(f64::max)?;
        let x_min = points().map(|point| point.0).reduce(f64::min)?;
        let highs = points().map(|point| point.1);
        let highest = highs
            .chain(self.marks.iter().map(|mark| mark.0))
            .reduce(f64::max)?;
        let step = nice_step(highest);
        let frame = Frame {
            x: if self.log_x {
                Axis::Log(x_min.ln(), x_max.ln())
            } else {
                Axis::Linear(x_max)
            },
            y_max: (highest / step).ceil().max(1.0) * step,
        };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\">\n\
             <title>{0}</title>\n<style>\n{STYLE}</style>\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" class=\"ground\"/>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"26\">{0}</text>\n",
            escaped(&self.title)
        );
        self.draw_grid(&mut svg, &frame, step);
        for (value, name) in &self.marks {
            let y = frame.y(*value);
            let _ = writeln!(
                svg,
                "<line class=\"mark\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\"/>\n\
                 <text x=\"{RIGHT}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                y - 5.0,
                escaped(name)
            );
        }
        for (index, series) in self.series.iter().enumerate() {
            draw_series(&mut svg, &frame, index, series);
        }
        self.draw_legend(&mut svg);
        svg.push_str("</svg>\n");
        Some(svg)
    }

    fn draw_grid(&self, svg: &mut String, frame: &Frame, step: f64) {
        let lines = (frame.y_max / step).round() as u32;
        for line in 0..=lines {
            let value = f64::from(line) * step;
            let y = frame.y(value);
            let class = if line == 0 { "axis" } else { "grid" };
            let _ = writeln!(
                svg,
                "<line class=\"{class}\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.5,
                number(value)
            );
        }
        for value in self.x_ticks(frame) {
            let x = frame.x(value);
            let _ = writeln!(
                svg,
                "<line class=\"axis\" x1=\"{x:.1}\" y1=\"{BOTTOM}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>\n\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                BOTTOM + 5.0,
                BOTTOM + 20.0,
                number(value)
            );
        }
        let middle = (LEFT + RIGHT) / 2.0;
        let _ = writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text x=\"{LEFT}\" y=\"{:.1}\">{}</text>",
            HEIGHT - 14.0,
            escaped(&self.x_label),
            TOP - 14.0,
            escaped(&self.y_label)
        );
    }

    fn x_ticks(&self, frame: &Frame) -> Vec<f64> {
        match frame.x {
            Axis::Linear(max) => {
                let step = nice_step(max);
                (0..=(max / step) as u32)
                    .map(|tick| f64::from(tick) * step)
                    .collect()
            }
            Axis::Log(min, max) => {
                let decades =
                    (min / 10_f64.ln()).floor() as i32..=(max / 10_f64.ln()).ceil() as i32;
                decades
                    .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)))
                    .filter(|value| (min - 1e-9..=max + 1e-9).contains(&value.ln()))
                    .collect()
            }
        }
    }

    /// The names of the series in one row below the title.
    fn draw_legend(&self, svg: &mut String) {
        let (mut left, y) = (LEFT, 48.0);
        for (index, series) in self.series.iter().enumerate() {
            let _ = writeln!(
                svg,
                "<line {} x1=\"{left:.1}\" y1=\"{y}\" x2=\"{:.1}\" y2=\"{y}\"/>\n\
                 <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                stroke(index),
                left + 24.0,
                left + 30.0,
                y + 4.0,
                escaped(&series.name)
            );
            left += series.name.chars().count() as f64 * 7.0 + 52.0;
        }
    }
}

enum Axis {
    /// From 0 to this value.
    Linear(f64),
    /// The natural logarithms of both ends.
    Log(f64, f64),
}

/// Maps values to positions in the chart.
struct Frame {
    x: Axis,
    y_max: f64,
}

impl Frame {
    fn x(&self, value: f64) -> f64 {
        let share = match self.x {
            Axis::Linear(max) => value / max,
            Axis::Log(min, max) => (value.ln() - min) / (max - min).max(f64::EPSILON),
        };
        LEFT + share * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - value / self.y_max * (BOTTOM - TOP)
    }
}

fn draw_series(svg: &mut String, frame: &Frame, index: usize, series: &Series) {
    let mut path = String::new();
    for (x, y) in &series.points {
        let verb = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{verb}{:.1} {:.1}", frame.x(*x), frame.y(*y));
    }
    let _ = writeln!(svg, "<path {} d=\"{path}\"/>", stroke(index));
    if (3..=DOTS_MAX).contains(&series.points.len()) {
        for (x, y) in &series.points {
            let (x, y, color) = (frame.x(*x), frame.y(*y), index % DASHES.len());
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" class=\"d{color}\"/>"
            );
        }
    }
}

fn stroke(index: usize) -> String {
    let look = index % DASHES.len();
    format!(
        "class=\"line s{look}\" stroke-dasharray=\"{}\"",
        DASHES[look]
    )
}

/// A step of 1, 2 or 5 times a power of ten that divides `max` into about [`TICKS`] parts.
fn nice_step(max: f64) -> f64 {
    if max <= 0.0 {
        return 1.0;
    }
    let rough = max / TICKS;
    let power = 10_f64.powf(rough.log10().floor());
    let digit = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|digit| digit * power >= rough);
    digit.unwrap_or(10.0) * power
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}
