//! What a person sees while something takes long: one moving line on a terminal, a plain line now and then elsewhere.

use std::{
    io::IsTerminal,
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two plain lines of one phase, where nobody watches.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
const TICK_INTERVAL: Duration = Duration::from_millis(100);

/// Reports phases on standard error; standard output is left to results.
pub struct Progress {
    out: Out,
}

enum Out {
    Silent,
    Plain(Mutex<Instant>),
    Terminal(Mutex<Option<ProgressBar>>),
}

impl Progress {
    /// Nothing at all.
    pub fn silent() -> Self {
        Progress { out: Out::Silent }
    }

    /// A moving line if standard error is a terminal; if not, plain lines, or nothing where a machine reads the result.
    pub fn new(for_machine: bool) -> Self {
        let out = if std::io::stderr().is_terminal() {
            Out::Terminal(Mutex::new(None))
        } else if for_machine {
            Out::Silent
        } else {
            Out::Plain(Mutex::new(Instant::now()))
        };
        Progress { out }
    }

    /// Begins a phase; the one before is left as done.
    pub fn phase(&self, name: &str) {
        match &self.out {
            Out::Silent => {}
            Out::Plain(last) => {
                eprintln!("{name}");
                *lock(last) = Instant::now();
            }
            Out::Terminal(bar) => {
                let new = ProgressBar::new_spinner();
                new.set_style(
                    ProgressStyle::with_template("{spinner} {prefix} {wide_msg} {elapsed}").expect("a constant template"),
                );
                new.set_prefix(name.to_owned());
                new.enable_steady_tick(TICK_INTERVAL);
                if let Some(old) = lock(bar).replace(new) {
                    finish(&old);
                }
            }
        }
    }

    /// Something that a person should know and that stays.
    pub fn note(&self, text: &str) {
        match &self.out {
            Out::Silent => {}
            Out::Plain(_) => eprintln!("{text}"),
            Out::Terminal(bar) => match &*lock(bar) {
                Some(bar) => bar.suspend(|| eprintln!("{text}")),
                None => eprintln!("{text}"),
            },
        }
    }

    /// How far the phase is. `text` is made only when it is shown.
    pub fn update(&self, text: impl FnOnce() -> String) {
        match &self.out {
            Out::Silent => {}
            Out::Plain(last) => {
                let mut last = lock(last);
                if last.elapsed() >= PLAIN_INTERVAL {
                    eprintln!("  {}", text());
                    *last = Instant::now();
                }
            }
            Out::Terminal(bar) => {
                if let Some(bar) = &*lock(bar) {
                    bar.set_message(text());
                }
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Out::Terminal(bar) = &self.out
            && let Some(bar) = lock(bar).take()
        {
            finish(&bar);
        }
    }
}

fn finish(bar: &ProgressBar) {
    bar.set_style(ProgressStyle::with_template("✓ {prefix} {wide_msg} {elapsed}").expect("a constant template"));
    bar.finish();
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// `1.5 GiB`, `12 KiB`.
pub fn human_bytes(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}
