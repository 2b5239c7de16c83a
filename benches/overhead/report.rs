//! Figures made into tables.

use std::fmt::Write;

/// The middle of what was measured.
pub fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which this part of them is.
pub fn quantile(values: &mut [f64], part: f64) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}

/// A table in Markdown.
#[derive(Debug)]
pub struct Table(String);

impl Table {
    /// With its heads.
    pub fn new(heads: &[&str]) -> Table {
        let mut table = Table(String::new());
        table.row(heads);
        table.row(&vec!["---"; heads.len()]);
        table
    }

    /// One more row.
    pub fn row<T: AsRef<str>>(&mut self, cells: &[T]) {
        for cell in cells {
            write!(self.0, "| {} ", cell.as_ref()).expect("a text");
        }
        self.0.push_str("|\n");
    }

    /// Shows it.
    pub fn print(&self) {
        println!("{}", self.0);
    }
}

/// Figures beside what they are meant to be.
#[derive(Debug)]
pub struct Goals(Table);

impl Goals {
    /// None yet.
    pub fn new() -> Goals {
        Goals(Table::new(&["figure", "seen", "goal", "stretch", ""]))
    }

    /// A figure that may be so large.
    pub fn at_most(&mut self, what: &str, seen: f64, goal: f64, stretch: Option<f64>, unit: &str) {
        let how = |bound: f64| seen <= bound;
        self.note(what, seen, "≤", goal, stretch, unit, &how);
    }

    /// A figure that has to be so large.
    pub fn at_least(&mut self, what: &str, seen: f64, goal: f64, stretch: Option<f64>, unit: &str) {
        let how = |bound: f64| seen >= bound;
        self.note(what, seen, "≥", goal, stretch, unit, &how);
    }

    #[expect(clippy::too_many_arguments, reason = "the columns of a table")]
    fn note(
        &mut self,
        what: &str,
        seen: f64,
        sign: &str,
        goal: f64,
        stretch: Option<f64>,
        unit: &str,
        is_met: &dyn Fn(f64) -> bool,
    ) {
        let verdict = match stretch {
            Some(stretch) if is_met(stretch) => "stretch",
            _ if is_met(goal) => "met",
            _ => "missed",
        };
        let bound = |bound: f64| format!("{sign} {}", figure(bound, unit));
        self.0.row(&[
            what.to_owned(),
            figure(seen, unit),
            bound(goal),
            stretch.map_or_else(String::new, bound),
            verdict.to_owned(),
        ]);
    }

    /// Shows them.
    pub fn print(&self) {
        self.0.print();
    }
}

fn figure(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}
