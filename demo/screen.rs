//! What the demo looks like: chapters, lines with the time since the start, the commands as one would type them, what they
//! print, and one moving line while something lasts. Colour and movement only on a terminal.

use std::{
    fmt::{Display, Write as _},
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// Prompts that commands are typed behind.
pub const SHELL: &str = "$";
pub const MYSQL: &str = "mysql>";

const WIDTH: usize = 100;
const CONTINUATION_INDENT: usize = 4;
/// The column that everything but the times starts in.
const MARGIN: usize = 10;
/// Of the names in lists.
const NAME_WIDTH: usize = 14;
const TICK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
enum Ink {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Cyan = 36,
}

pub struct Screen {
    began: Instant,
    chapter: u32,
    colour: bool,
}

impl Screen {
    pub fn new() -> Screen {
        Screen {
            began: Instant::now(),
            chapter: 0,
            colour: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn title(&self, text: &str, below: &str) {
        println!("\n  {}\n  {}", self.ink(Ink::Bold, text), self.ink(Ink::Dim, below));
    }

    pub fn chapter(&mut self, name: &str) {
        self.chapter += 1;
        let head = format!("{:>4}  {name} ", self.chapter);
        let rule = "─".repeat(WIDTH.saturating_sub(head.chars().count()));
        println!("\n{}{}\n", self.ink(Ink::Bold, &head), self.ink(Ink::Dim, &rule));
    }

    /// Something that happens.
    pub fn say(&self, text: impl Display) {
        println!("{}{text}", self.time());
    }

    /// Something that succeeded.
    pub fn done(&self, text: impl Display) {
        println!("{}{} {text}", self.time(), self.ink(Ink::Green, "✓"));
    }

    /// Something that went wrong, as it should or not.
    pub fn failed(&self, text: impl Display) {
        println!("{}{} {text}", self.time(), self.ink(Ink::Red, "✗"));
    }

    /// More about the line before.
    pub fn more(&self, text: impl Display) {
        println!("{:MARGIN$}{}", "", self.ink(Ink::Dim, &text.to_string()));
    }

    /// A command, as it is typed behind `prompt`.
    pub fn command(&self, prompt: &str, line: &str) {
        // A shell must be told that a command goes on; the mysql client waits for the semicolon.
        let goes_on = if prompt == SHELL { " \\" } else { "" };
        let indent = " ".repeat(MARGIN + prompt.len() + 1 + CONTINUATION_INDENT);
        let lines: Vec<String> = fold(line, WIDTH - indent.len() - goes_on.len())
            .iter()
            .map(|line| self.ink(Ink::Cyan, line))
            .collect();
        let typed = lines.join(&format!("{goes_on}\n{indent}"));
        println!("{}{} {typed}", self.time(), self.ink(Ink::Dim, prompt));
    }

    /// What a command printed.
    pub fn output(&self, text: &str) {
        let bar = self.ink(Ink::Dim, "│");
        for line in text.trim_end().lines() {
            println!("{:MARGIN$}{bar} {line}", "");
        }
    }

    /// A moving line until the answer is dropped; nothing may be printed meanwhile. `state` is asked for what to show.
    pub fn working(&self, text: &str, state: impl Fn() -> String + Clone + Send + Sync + 'static) -> Working {
        let bar = ProgressBar::new_spinner();
        let template = format!("{{since:>{}}}  {{spinner}} {{msg}}  {{state}}", MARGIN - 2);
        let began = self.began;
        let style = ProgressStyle::with_template(&template)
            .expect("a constant template")
            .with_key("since", move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
                // What cannot be shown is shown at the next tick.
                let _ = out.write_str(&seconds(began.elapsed()));
            })
            .with_key("state", move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = out.write_str(&state());
            });
        bar.set_style(style);
        bar.set_message(text.to_owned());
        bar.enable_steady_tick(TICK_INTERVAL);
        Working(bar)
    }

    /// Why nothing more follows.
    pub fn broke_off(&self, error: &str) {
        println!("\n{}", self.ink(Ink::Red, error));
    }

    /// Names and values, below everything else.
    pub fn list(&self, lines: &[(&str, String)]) {
        for (name, value) in lines {
            println!("  {name:<NAME_WIDTH$} {}", self.ink(Ink::Cyan, value));
        }
        println!();
    }

    /// A framed list of names and values, under a verdict.
    pub fn frame(&self, good: bool, verdict: &str, lines: &[(&str, String)]) {
        let ink = if good { Ink::Green } else { Ink::Red };
        let rows: Vec<String> = lines
            .iter()
            .map(|(name, value)| format!("{name:<NAME_WIDTH$} {value}"))
            .collect();
        let longest = rows.iter().map(|r| r.chars().count()).max().unwrap_or(0);
        let width = longest.max(verdict.chars().count());
        let edge = |left, right| println!("  {}", self.ink(ink, &format!("{left}{}{right}", "─".repeat(width + 4))));
        let side = self.ink(ink, "│");
        let line = |text: &str, painted: String| {
            let gap = " ".repeat(width - text.chars().count());
            println!("  {side}  {painted}{gap}  {side}");
        };
        println!();
        edge('┌', '┐');
        line(verdict, self.ink(Ink::Bold, verdict));
        if !rows.is_empty() {
            line("", String::new());
        }
        for row in &rows {
            line(row, row.clone());
        }
        edge('└', '┘');
        println!();
    }

    fn time(&self) -> String {
        let text = format!("{:>width$}  ", seconds(self.began.elapsed()), width = MARGIN - 2);
        self.ink(Ink::Dim, &text)
    }

    fn ink(&self, ink: Ink, text: &str) -> String {
        if self.colour {
            format!("\x1b[{}m{text}\x1b[0m", ink as u8)
        } else {
            text.to_owned()
        }
    }
}

/// A moving line. Dropped, it is gone.
pub struct Working(ProgressBar);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Breaks a line between words, so that no part is longer than `width` unless a word is.
fn fold(line: &str, width: usize) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for word in line.split(' ') {
        match parts.last_mut() {
            Some(part) if part.chars().count() + 1 + word.chars().count() <= width => {
                part.push(' ');
                part.push_str(word);
            }
            _ => parts.push(word.to_owned()),
        }
    }
    parts
}

fn seconds(d: Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}

/// `0.42 s`, `12.34 s`.
pub fn human_ms(ms: u64) -> String {
    const MS_PER_S: f64 = 1000.0;
    format!("{:.2} s", ms as f64 / MS_PER_S)
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        let _ = out.write_char(digit);
    }
    out
}
