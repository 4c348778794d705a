//! Plots as inline SVG: scales, axes, lines, bars. Everything is drawn here; the page's script only reads out points.

use std::fmt::Write as _;

use super::escape;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 54.0;

/// Points of a line are thinned to this many before: more are not seen.
pub const POINTS_MAX: usize = 600;

pub struct Plot {
    pub title: String,
    /// What is shown, in a sentence. Plain text.
    pub caption: String,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
}

pub struct Axis {
    pub name: &'static str,
    pub scale: Scale,
    pub label: fn(f64) -> String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    Linear { low: f64, high: f64 },
    Log { low: f64, high: f64 },
}

pub struct Line {
    pub name: String,
    /// Which of the page's colours
    pub color: usize,
    pub style: Style,
    pub points: Vec<Point>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Style {
    Solid,
    Dashed,
    /// Solid, each point marked
    Marked,
    /// Of bars
    Filled,
}

pub struct Point {
    pub x: f64,
    pub y: f64,
    /// What the script shows beside the line's name
    pub text: String,
    /// Not joined with the one before
    pub after_gap: bool,
    /// Drawn as a fault
    pub bad: bool,
}

impl Point {
    pub fn new(x: f64, y: f64, text: String) -> Point {
        Point { x, y, text, after_gap: false, bad: false }
    }
}

impl Scale {
    /// From 0 to a little above the greatest.
    pub fn from_zero(values: impl Iterator<Item = f64>) -> Scale {
        let high = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        Scale::Linear { low: 0.0, high: if high > 0.0 { high * 1.06 } else { 1.0 } }
    }

    /// Exactly these ends, at least `least` apart.
    pub fn between(low: f64, high: f64, least: f64) -> Scale {
        Scale::Linear { low, high: high.max(low + least) }
    }

    /// Whole halves of decades around the values above 0.
    pub fn log(values: impl Iterator<Item = f64>) -> Scale {
        let (mut low, mut high) = (f64::INFINITY, 0f64);
        for value in values.filter(|value| *value > 0.0 && value.is_finite()) {
            low = low.min(value);
            high = high.max(value);
        }
        if high == 0.0 {
            return Scale::Log { low: 1.0, high: 10.0 };
        }
        let halves = |value: f64| value.log10() * 2.0;
        let low = 10f64.powf(halves(low / 1.05).floor() / 2.0);
        let high = 10f64.powf(halves(high * 1.05).ceil() / 2.0);
        Scale::Log { low, high: high.max(low * 10f64.sqrt()) }
    }

    /// 0 at the low end, 1 at the high one; what lies outside is moved to the ends.
    pub fn share(self, value: f64) -> f64 {
        let share = match self {
            Scale::Linear { low, high } => (value - low) / (high - low),
            Scale::Log { low, high } => (value.max(low) / low).log10() / (high / low).log10(),
        };
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Round values to mark, a handful; true for those that a narrow screen can do without.
    fn ticks(self) -> Vec<(f64, bool)> {
        match self {
            Scale::Linear { low, high } => {
                let step = round_step((high - low) / 6.0);
                let first = (low / step).ceil() as i64;
                (first..)
                    .map(|n| (n as f64 * step, (n - first) % 2 == 1))
                    .take_while(|(tick, _)| *tick <= high * (1.0 + 1e-9))
                    .take(20)
                    .collect()
            }
            Scale::Log { low, high } => {
                let decades = (high / low).log10();
                let steps: &[f64] = if decades <= 1.6 {
                    &[1.0, 2.0, 5.0]
                } else if decades <= 3.1 {
                    &[1.0, 3.0]
                } else {
                    &[1.0]
                };
                let first = low.log10().floor() as i32;
                let last = high.log10().ceil() as i32;
                (first..=last)
                    .flat_map(|decade| steps.iter().map(move |step| (step * 10f64.powi(decade), *step != 1.0)))
                    .filter(|(tick, _)| *tick >= low * 0.999 && *tick <= high * 1.001)
                    .collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, not below.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|round| *round >= step * 0.999).unwrap_or(step)
}

fn across(share: f64) -> f64 {
    LEFT + share * (WIDTH - LEFT - RIGHT)
}

fn up(share: f64) -> f64 {
    HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
}

impl Plot {
    pub fn draw(&self, out: &mut String) {
        figure(
            out,
            &self.title,
            &self.caption,
            self.lines.iter().map(|line| (&*line.name, line.color, line.style)),
            |out| {
                axes(out, &self.x, &self.y);
                for line in &self.lines {
                    self.line(out, line);
                }
                out.push_str("<line class=\"cursor\" hidden></line>");
            },
        );
    }

    fn line(&self, out: &mut String, line: &Line) {
        let place = |point: &Point| (across(self.x.scale.share(point.x)), up(self.y.scale.share(point.y)));
        let mut path = String::new();
        let mut texts = Vec::with_capacity(line.points.len());
        for (n, point) in line.points.iter().enumerate() {
            let (x, y) = place(point);
            let step = if n == 0 || point.after_gap { 'M' } else { 'L' };
            write!(path, "{step}{x:.1} {y:.1}").expect("a String takes everything");
            texts.push(escape(&point.text.replace('|', "/")));
        }
        let dashed = if line.style == Style::Dashed { " dashed" } else { "" };
        let (color, name, texts) = (color_class(line.color), escape(&line.name), texts.join("|"));
        put(
            out,
            format_args!(
                "<path class=\"line {color}{dashed}\" data-name=\"{name}\" data-text=\"{texts}\" d=\"{path}\"/>"
            ),
        );
        for point in &line.points {
            if line.style == Style::Marked || point.bad {
                let (x, y) = place(point);
                let bad = if point.bad { " bad" } else { "" };
                put(out, format_args!("<circle class=\"{color}{bad}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"));
            }
        }
    }
}

/// Two or more series of bars beside each other over the same classes.
pub struct Bars {
    pub title: String,
    pub caption: String,
    pub x_name: &'static str,
    /// Of the upper bounds of the classes
    pub classes: Vec<String>,
    /// Name and share (0 to 1) of each class
    pub series: Vec<(String, Vec<f64>)>,
}

impl Bars {
    pub fn draw(&self, out: &mut String) {
        let names = self.series.iter().enumerate().map(|(n, (name, _))| (&**name, n, Style::Filled));
        figure(out, &self.title, &self.caption, names, |out| {
            let y = Axis {
                name: "share of answers",
                scale: Scale::from_zero(self.series.iter().flat_map(|(_, shares)| shares.iter().copied())),
                label: |share| format!("{} %", trimmed(share * 100.0)),
            };
            axis_up(out, &y);
            let slot = 1.0 / self.classes.len().max(1) as f64;
            // As many labels as have room; half of them on a narrow screen.
            let every = self.classes.len().div_ceil(8);
            for (n, label) in self.classes.iter().enumerate().filter(|(n, _)| n % every == 0) {
                let x = across((n as f64 + 0.5) * slot);
                let minor = if (n / every) % 2 == 1 { " minor" } else { "" };
                put(
                    out,
                    format_args!(
                        "<text class=\"tick below{minor}\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                        HEIGHT - BOTTOM + 21.0,
                        escape(label)
                    ),
                );
            }
            axis_name(out, self.x_name);
            let width = slot * 0.84 / self.series.len().max(1) as f64;
            for (n, (name, shares)) in self.series.iter().enumerate() {
                let mut path = String::new();
                for (class, share) in shares.iter().enumerate() {
                    let from = across((class as f64 + 0.08) * slot + n as f64 * width);
                    let to = across((class as f64 + 0.08) * slot + (n + 1) as f64 * width);
                    let (base, top) = (up(0.0), up(y.scale.share(*share)));
                    put(&mut path, format_args!("M{from:.1} {base:.1}V{top:.1}H{to:.1}V{base:.1}Z"));
                }
                let texts: Vec<String> = (self.classes.iter().zip(shares))
                    .map(|(class, share)| escape(&format!("{class}: {} %", trimmed(share * 100.0))))
                    .collect();
                put(
                    out,
                    format_args!(
                        "<path class=\"bar {}\" data-name=\"{}\" data-bars=\"{}\" d=\"{path}\"/>",
                        color_class(n),
                        escape(name),
                        texts.join("|")
                    ),
                );
            }
            out.push_str("<line class=\"cursor\" hidden></line>");
        });
    }
}

fn figure<'a>(
    out: &mut String,
    title: &str,
    caption: &str,
    names: impl Iterator<Item = (&'a str, usize, Style)>,
    draw: impl FnOnce(&mut String),
) {
    put(out, format_args!("<figure class=\"card\"><figcaption><h2>{}</h2>", escape(title)));
    put(out, format_args!("<p>{}</p><ul class=\"legend\">", escape(caption)));
    for (name, color, style) in names {
        let (class, path) = match style {
            Style::Filled => ("bar", "M4 0H18V8H4Z"),
            Style::Dashed => ("line dashed", "M1 4H21"),
            Style::Solid | Style::Marked => ("line", "M1 4H21"),
        };
        let (color, name) = (color_class(color), escape(name));
        put(
            out,
            format_args!(
                "<li><svg class=\"key\" viewBox=\"0 0 22 8\" aria-hidden=\"true\"><path class=\"{class} {color}\" \
                 d=\"{path}\"/></svg>{name}</li>"
            ),
        );
    }
    put(
        out,
        format_args!(
            "</ul></figcaption><div class=\"frame\"><svg class=\"plot\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"{}\">",
            escape(title)
        ),
    );
    draw(out);
    out.push_str("</svg><div class=\"tip\" hidden></div></div></figure>\n");
}

fn axes(out: &mut String, x: &Axis, y: &Axis) {
    axis_up(out, y);
    for (tick, minor) in x.scale.ticks() {
        let at = across(x.scale.share(tick));
        let minor = if minor { " minor" } else { "" };
        put(out, format_args!("<path class=\"grid\" d=\"M{at:.1} {:.1}V{:.1}\"/>", up(0.0), up(1.0)));
        put(
            out,
            format_args!(
                "<text class=\"tick below{minor}\" x=\"{at:.1}\" y=\"{:.1}\">{}</text>",
                HEIGHT - BOTTOM + 21.0,
                escape(&(x.label)(tick))
            ),
        );
    }
    axis_name(out, x.name);
}

fn axis_up(out: &mut String, y: &Axis) {
    for (tick, minor) in y.scale.ticks() {
        let at = up(y.scale.share(tick));
        let minor = if minor { " minor" } else { "" };
        put(out, format_args!("<path class=\"grid\" d=\"M{:.1} {at:.1}H{:.1}\"/>", across(0.0), across(1.0)));
        put(
            out,
            format_args!(
                "<text class=\"tick beside{minor}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                LEFT - 7.0,
                at + 4.5,
                escape(&(y.label)(tick))
            ),
        );
    }
}

fn axis_name(out: &mut String, name: &str) {
    put(
        out,
        format_args!(
            "<text class=\"tick below\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            across(0.5),
            HEIGHT - 6.0,
            escape(name)
        ),
    );
}

fn color_class(color: usize) -> String {
    format!("c{}", color % super::COLORS)
}

/// At most two decimals, none for nothing.
pub fn trimmed(value: f64) -> String {
    format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_string()
}

pub fn put(out: &mut String, text: std::fmt::Arguments) {
    out.write_fmt(text).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_place_their_ends_and_never_leave_the_frame() {
        let linear = Scale::Linear { low: 0.0, high: 200.0 };
        assert_eq!(
            (linear.share(0.0), linear.share(100.0), linear.share(200.0), linear.share(900.0)),
            (0.0, 0.5, 1.0, 1.0)
        );
        let log = Scale::Log { low: 1.0, high: 100.0 };
        assert_eq!((log.share(0.0), log.share(1.0), log.share(10.0), log.share(1e9)), (0.0, 0.0, 0.5, 1.0));
        assert_eq!(linear.share(f64::NAN), 0.0);
    }

    #[test]
    fn ticks_are_round_and_a_handful() {
        let of = |scale: Scale| scale.ticks().into_iter().map(|(tick, _)| tick).collect::<Vec<_>>();
        assert_eq!(of(Scale::Linear { low: 0.0, high: 10_600.0 }), [0.0, 2e3, 4e3, 6e3, 8e3, 1e4]);
        assert_eq!(of(Scale::Log { low: 100.0, high: 1_000.0 }), [100.0, 200.0, 500.0, 1_000.0]);
        assert_eq!(of(Scale::Log { low: 1.0, high: 1e6 }).len(), 7);
        for high in [1e-6, 0.3, 7.0, 1234.5, 1e9] {
            let count = of(Scale::Linear { low: 0.0, high }).len();
            assert!((3..=8).contains(&count), "{count} up to {high}");
        }
    }

    #[test]
    fn a_scale_of_nothing_is_still_a_scale() {
        for scale in [Scale::from_zero([].into_iter()), Scale::log([0.0].into_iter()), Scale::between(5.0, 5.0, 1.0)] {
            assert!(!scale.ticks().is_empty(), "{scale:?}");
            assert!(scale.share(5.0).is_finite());
        }
    }
}
