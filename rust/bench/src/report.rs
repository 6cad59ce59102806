//! Prints figures and bars, as a table while the run goes on or as one JSON document at its end.

pub(crate) struct Report {
    json: bool,
    figures: Vec<String>,
    missed: usize,
    bars: usize,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, figures: Vec::new(), missed: 0, bars: 0 }
    }

    pub(crate) fn heading(&self, text: &str) {
        if !self.json {
            println!("\n{text}");
        }
    }

    /// A number without a bar.
    pub(crate) fn figure(&mut self, name: &str, value: f64, unit: &str) {
        if self.json {
            self.figures.push(format!(r#"{{"name":"{name}","value":{value:.3},"unit":"{unit}"}}"#));
        } else {
            println!("  {name:<58} {value:>10.2} {unit}");
        }
    }

    /// A number that must stay at or below (`at_most`) or at or above its target.
    pub(crate) fn bar(&mut self, name: &str, value: f64, target: f64, at_most: bool, unit: &str) {
        let pass = if at_most { value <= target } else { value >= target };
        self.bars += 1;
        self.missed += usize::from(!pass);
        let (sign, verdict) = (if at_most { "<=" } else { ">=" }, if pass { "pass" } else { "miss" });
        if self.json {
            self.figures.push(format!(
                r#"{{"name":"{name}","value":{value:.3},"unit":"{unit}","target":"{sign} {target:.3}","pass":{pass}}}"#
            ));
        } else {
            println!("  {name:<58} {value:>10.3} {unit:<5} target {sign} {target:<7.3} {verdict}");
        }
    }

    /// Whether every bar was met.
    pub(crate) fn finish(&self) -> bool {
        let (met, bars) = (self.bars - self.missed, self.bars);
        if self.json {
            println!(r#"{{"bars_met":{met},"bars":{bars},"figures":["#);
            println!("{}\n]}}", self.figures.join(",\n"));
        } else {
            println!("\n{met} of {bars} bars met");
        }
        self.missed == 0
    }
}
