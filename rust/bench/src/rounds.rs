//! The measuring loop: contenders in turn, many short rounds, medians; and the keys they are given.

use std::time::Instant;

pub(crate) struct Contender<'a> {
    pub(crate) name: &'a str,
    /// Runs its share of a round (numbered from 0); returns how many operations that was.
    pub(crate) run: Box<dyn FnMut(usize) -> usize + 'a>,
}

impl<'a> Contender<'a> {
    pub(crate) fn new(name: &'a str, run: impl FnMut(usize) -> usize + 'a) -> Self {
        Self { name, run: Box::new(run) }
    }
}

/// Nanoseconds an operation, by round and contender.
pub(crate) struct Times {
    names: Vec<String>,
    rounds: Vec<Vec<f64>>,
}

pub(crate) fn measure(rounds: usize, mut contenders: Vec<Contender<'_>>) -> Times {
    let names: Vec<String> = contenders.iter().map(|c| c.name.to_owned()).collect();
    let count = contenders.len();
    let mut times = Vec::new();
    // Round 0 warms caches, branch predictors and the rivals' read buffers, and is not counted.
    for round in 0..=rounds {
        let mut row = vec![0.0; count];
        // Who begins rotates, so that a slow spell of the machine does not always hit the same one.
        for turn in 0..count {
            let who = (turn + round) % count;
            let start = Instant::now();
            let ops = (contenders[who].run)(round);
            row[who] = start.elapsed().as_nanos() as f64 / ops as f64;
        }
        if round > 0 {
            times.push(row);
        }
    }
    Times { names, rounds: times }
}

impl Times {
    fn column(&self, name: &str) -> usize {
        self.names.iter().position(|n| n == name).expect("a contender of this measurement")
    }

    pub(crate) fn nanos(&self, name: &str) -> f64 {
        let column = self.column(name);
        median(self.rounds.iter().map(|row| row[column]).collect())
    }

    /// The median over rounds of one's time to the other's.
    pub(crate) fn ratio(&self, ours: &str, theirs: &str) -> f64 {
        let (a, b) = (self.column(ours), self.column(theirs));
        median(self.rounds.iter().map(|row| row[a] / row[b]).collect())
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs `work(thread)` on that many threads at once.
pub(crate) fn on_threads(threads: usize, work: impl Fn(usize) + Sync) {
    let start = std::sync::Barrier::new(threads);
    std::thread::scope(|scope| {
        for me in 0..threads {
            let (work, start) = (&work, &start);
            scope.spawn(move || {
                start.wait();
                work(me);
            });
        }
    });
}

pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// An id as the server makes them: UUIDv7, time in the high bits, 62 random bits below.
pub(crate) fn uid(n: usize) -> u128 {
    let low = Rng(n as u64).next() >> 2;
    ((0x0193_0000_0000 + n as u128 / 100) << 80) | (7 << 76) | (2 << 62) | u128::from(low)
}

/// `count` draws of `0..n`, Zipf with exponent 0.99 (YCSB's), ranks scattered over the keys.
pub(crate) fn zipf(n: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=n)
        .map(|rank| {
            sum += 1.0 / (rank as f64).powf(0.99);
            sum
        })
        .collect();
    let mut scattered: Vec<usize> = (0..n).collect();
    let mut rng = Rng(42);
    for i in (1..n).rev() {
        scattered.swap(i, rng.below(i + 1));
    }
    let mut rng = Rng(seed);
    (0..count)
        .map(|_| {
            let draw = (rng.next() >> 11) as f64 / (1u64 << 53) as f64 * sum;
            scattered[cumulative.partition_point(|c| *c < draw).min(n - 1)]
        })
        .collect()
}
