//! A hashed timer wheel: deadlines of connections, 64 ms a slot.
//!
//! Entries are hints. An owner whose deadline moved later lets the old entry come up and looks again; one whose
//! deadline moved earlier adds another. So a request in time costs nothing here.

const SLOT_NS: u64 = 64_000_000;
const SLOTS: usize = 2048; // 131 s; what lies beyond comes round again

pub struct Wheel<T> {
    slots: Vec<Vec<(u64, T)>>,
    /// Everything before this slot has come up.
    next: u64,
}

impl<T: Copy> Wheel<T> {
    pub fn new(now_ns: u64) -> Wheel<T> {
        Wheel { slots: (0..SLOTS).map(|_| Vec::new()).collect(), next: now_ns / SLOT_NS }
    }

    pub fn add(&mut self, deadline_ns: u64, item: T) {
        // Rounded up: an entry never comes up early.
        let slot = (deadline_ns / SLOT_NS + 1).max(self.next);
        self.slots[slot as usize % SLOTS].push((slot, item));
    }

    /// Appends what is due to `out`.
    pub fn advance(&mut self, now_ns: u64, out: &mut Vec<T>) {
        let now = now_ns / SLOT_NS;
        // After a long sleep one round sees everything.
        let rounds = (now + 1).saturating_sub(self.next).min(SLOTS as u64);
        for _ in 0..rounds {
            let slot = &mut self.slots[self.next as usize % SLOTS];
            slot.retain(|&(at, item)| {
                if at <= now {
                    out.push(item);
                }
                at > now
            });
            self.next += 1;
        }
        self.next = self.next.max(now + 1);
    }

    /// When to look again.
    pub fn next_ns(&self) -> u64 {
        self.next * SLOT_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_comes_up_early_and_everything_comes_up() {
        let mut wheel = Wheel::new(0);
        let deadlines = [1u64, 63_999_999, 64_000_000, 10_000_000_000, 400_000_000_000];
        for &deadline in &deadlines {
            wheel.add(deadline, deadline);
        }
        let (mut now, mut seen) = (0, Vec::new());
        while now < 500_000_000_000 {
            let mut due = Vec::new();
            wheel.advance(now, &mut due);
            for deadline in due {
                assert!(deadline <= now && now <= deadline + 3 * SLOT_NS, "{deadline} at {now}");
                seen.push(deadline);
            }
            now += 50_000_000;
        }
        assert_eq!(seen, deadlines);
    }

    #[test]
    fn a_long_sleep_loses_no_deadline() {
        let mut wheel = Wheel::new(0);
        wheel.add(5_000_000_000, 1);
        wheel.add(200_000_000_000, 2);
        let mut due = Vec::new();
        wheel.advance(3_000_000_000_000, &mut due);
        due.sort_unstable();
        assert_eq!(due, [1, 2]);
    }
}
