//! Waiting between attempts: exponential with jitter, and a cap.

use std::{cell::RefCell, time::Duration};

use rand::{Rng, SeedableRng, rngs::SmallRng};

thread_local! {
    static JITTER: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Makes this thread's waits the same in every run, for whoever replays one.
pub fn seed_jitter(seed: u64) {
    JITTER.set(SmallRng::seed_from_u64(seed));
}

/// The waits between attempts at one thing.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    /// The first wait is at most `first`, each later one at most twice the one before, and none is above `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Backoff { next: first, max }
    }

    /// How long to wait before the next attempt: between half and all of the current step.
    pub fn step(&mut self) -> Duration {
        let wait = self
            .next
            .mul_f64(JITTER.with_borrow_mut(|jitter| jitter.random_range(0.5..=1.0)));
        self.next = (self.next * 2).min(self.max);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_cap() {
        let mut b = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..10).map(|_| b.step()).collect();
        assert!(waits[0] <= Duration::from_millis(100));
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(1)));
        assert!(waits[9] >= Duration::from_millis(500));
    }
}
