//! Rows of tokens for training: a trajectory's records, put together from one cut to the next.
//!
//! A row is what a model saw and said: it begins with the tokens that the first new turn builds on and grows by each
//! turn's span. Where a commit trimmed tokens or started a segment, the row ends; the next one begins with what was
//! kept, as context. So each token that is trained on has loss mask 1 in exactly one row.

use crate::chain::digest;
use crate::checkpoint::TOKEN;
use crate::error::{Reason, Refusal};
use crate::gen_store::RecordMeta;
use crate::gen_v1::{Record, TokenSpan, TrajectoryRow, WeightVersionRun};
use prost::Message;

/// Tokens of one part of a row: about 1 MiB with all their arrays.
const PART: usize = 1 << 16;
/// The weight version of a token of which none is known.
const NO_VERSION: i64 = -1;

/// Builds the rows of one trajectory. Records are pushed in the order of their turns; a row that has ended is taken part by
/// part before the next record comes.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    ids: Vec<u8>,
    logprobs: Vec<u8>,
    mask: Vec<u8>,
    /// Version and number of tokens.
    versions: Vec<(i64, u32)>,
    segment: u32,
    /// First and last turn with new tokens in this row.
    turns: Option<(u32, u32)>,
    reward: Option<f64>,
    aborted: bool,
    finish_reason: String,
    ended: Option<Ended>,
}

/// A row that has ended, and what of it was taken.
#[derive(Clone, Debug)]
struct Ended {
    segment: u32,
    turns: (u32, u32),
    ids: Vec<u8>,
    logprobs: Vec<u8>,
    mask: Vec<u8>,
    versions: Vec<(i64, u32)>,
    reward: Option<f64>,
    aborted: bool,
    finish_reason: String,
    /// Tokens taken, and the run that the next ones are in with how many of its tokens were taken.
    taken: usize,
    run: (usize, u32),
}

impl Rows {
    fn len(&self) -> u64 {
        (self.ids.len() / TOKEN) as u64
    }

    /// A turn from before the trajectory: its tokens are what the first row begins with.
    pub fn context(&mut self, meta: &[u8], tokens: &[u8]) -> Result<(), Refusal> {
        let corrupt = |what: &str| Refusal::new(Reason::SessionCorrupt, what.to_owned());
        let meta = RecordMeta::decode(meta).map_err(|_| corrupt("its metadata does not decode"))?;
        if digest(&[tokens]) != meta.tokens_digest {
            return Err(corrupt("its tokens do not match their digest"));
        }
        if meta.has_tokens {
            self.keep(meta.token_offset);
            self.extend(tokens.len() / TOKEN, tokens, &[], &[], &[]);
        }
        Ok(())
    }

    /// The tokens there are so far: part `n` of them.
    pub fn context_part(&self, n: usize) -> Option<TokenSpan> {
        let ids = self.ids.chunks(PART * TOKEN).nth(n)?.to_vec();
        Some(TokenSpan { offset: (n * PART) as u64, token_ids: ids, ..TokenSpan::default() })
    }

    /// The next record of the trajectory, with its payload; one that is not to be trained on is the ABORTED tail. A row may
    /// end before it.
    pub fn push(&mut self, record: &Record, discounted: Option<f64>, train: bool) {
        let empty = TokenSpan::default();
        let span = record.record.as_ref().and_then(|r| r.tokens.as_ref());
        let offset = span.map_or_else(|| self.len(), |s| s.offset);
        if offset < self.len() || record.new_segment {
            self.finish();
            self.keep(offset);
        }
        let (first, _) = self.turns.unwrap_or((record.turn, record.turn));
        self.turns = Some((first, record.turn));
        if train {
            self.reward = discounted;
        } else {
            self.aborted = true;
        }
        self.finish_reason = record.record.as_ref().map(|r| r.finish_reason.clone()).unwrap_or_default();
        let span = span.unwrap_or(&empty);
        let count = span.token_ids.len() / TOKEN;
        let mask = if train { mask_of(record, span, count) } else { vec![0; count] };
        let versions: Vec<_> = span.weight_versions.iter().map(|r| (r.version, r.count)).collect();
        self.extend(count, &span.token_ids, &span.logprobs, &mask, &versions);
    }

    /// Ends the row so far, if it has turns. The next row begins with its tokens as context.
    pub fn finish(&mut self) {
        let Some(turns) = self.turns.take() else { return };
        self.segment += 1;
        self.ended = Some(Ended {
            segment: self.segment,
            turns,
            ids: self.ids.clone(),
            logprobs: std::mem::take(&mut self.logprobs),
            mask: std::mem::take(&mut self.mask),
            versions: std::mem::take(&mut self.versions),
            reward: self.reward.take(),
            aborted: std::mem::take(&mut self.aborted),
            finish_reason: std::mem::take(&mut self.finish_reason),
            taken: 0,
            run: (0, 0),
        });
        self.keep(self.len());
    }

    /// The next part of the row that has ended; `None` when it was taken whole.
    pub fn part(&mut self) -> Option<TrajectoryRow> {
        let row = self.ended.as_mut()?;
        let part = row.part();
        if part.last {
            self.ended = None;
        }
        Some(part)
    }

    /// Keeps the first `offset` tokens, as context.
    fn keep(&mut self, offset: u64) {
        let count = (offset as usize).min(self.ids.len() / TOKEN);
        self.ids.truncate(count * TOKEN);
        self.logprobs = vec![0; count * 4];
        self.mask = vec![0; count];
        self.versions = if count > 0 { vec![(NO_VERSION, count as u32)] } else { Vec::new() };
    }

    fn extend(&mut self, count: usize, ids: &[u8], logprobs: &[u8], mask: &[u8], versions: &[(i64, u32)]) {
        self.ids.extend_from_slice(ids);
        let zeros = |bytes: &[u8], size: usize| if bytes.is_empty() { vec![0; size] } else { bytes.to_vec() };
        self.logprobs.extend(zeros(logprobs, count * 4));
        self.mask.extend(zeros(mask, count));
        let unknown = [(NO_VERSION, count as u32)];
        for (version, n) in if versions.is_empty() { &unknown[..] } else { versions } {
            match self.versions.last_mut() {
                Some(last) if last.0 == *version => last.1 += n,
                _ if *n > 0 => self.versions.push((*version, *n)),
                _ => {}
            }
        }
    }
}

/// What of a record's span is trained on: what its loss mask says; without one, as many tokens at the end as the engine
/// says it generated; without that, all.
pub(crate) fn mask_of(record: &Record, span: &TokenSpan, count: usize) -> Vec<u8> {
    if !span.loss_mask.is_empty() {
        return span.loss_mask.clone();
    }
    let generated = record.record.as_ref().and_then(|r| r.usage.as_ref()).map(|u| u.completion_tokens);
    let trained = generated.map_or(count, |n| count.min(n as usize));
    let mut mask = vec![0; count - trained];
    mask.resize(count, 1);
    mask
}

impl Ended {
    fn part(&mut self) -> TrajectoryRow {
        let count = self.ids.len() / TOKEN;
        let (start, end) = (self.taken, count.min(self.taken + PART));
        let last = end == count;
        self.taken = end;
        TrajectoryRow {
            segment: self.segment,
            first_turn: self.turns.0,
            last_turn: self.turns.1,
            tokens: Some(TokenSpan {
                offset: start as u64,
                token_ids: self.ids[start * TOKEN..end * TOKEN].to_vec(),
                logprobs: self.logprobs[start * 4..end * 4].to_vec(),
                loss_mask: self.mask[start..end].to_vec(),
                weight_versions: self.take_runs(end - start),
            }),
            reward: self.reward.filter(|_| last),
            aborted: self.aborted && last,
            finish_reason: if last { std::mem::take(&mut self.finish_reason) } else { String::new() },
            last,
        }
    }

    /// The runs of the next `count` tokens.
    fn take_runs(&mut self, mut count: usize) -> Vec<WeightVersionRun> {
        let mut out = Vec::new();
        while count > 0
            && let Some((version, length)) = self.versions.get(self.run.0)
        {
            let n = (*length - self.run.1).min(count as u32);
            out.push(WeightVersionRun { version: *version, count: n });
            count -= n as usize;
            self.run = if self.run.1 + n == *length { (self.run.0 + 1, 0) } else { (self.run.0, self.run.1 + n) };
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gen_v1::RecordInput;
    use proptest::prelude::*;

    fn record(turn: u32, offset: u64, ids: &[u32], mask: &[u8], new_segment: bool) -> Record {
        let tokens = TokenSpan {
            offset,
            token_ids: ids.iter().flat_map(|t| t.to_le_bytes()).collect(),
            loss_mask: mask.to_vec(),
            logprobs: ids.iter().flat_map(|t| (*t as f32).to_le_bytes()).collect(),
            weight_versions: vec![WeightVersionRun { version: i64::from(turn), count: ids.len() as u32 }]
                .into_iter()
                .filter(|r| r.count > 0)
                .collect(),
        };
        let finish_reason = format!("why {turn}");
        let record = Some(RecordInput { tokens: Some(tokens), finish_reason, ..RecordInput::default() });
        Record { turn, new_segment, record, ..Record::default() }
    }

    /// The parts of the row that has ended.
    fn taken(rows: &mut Rows) -> Vec<TrajectoryRow> {
        std::iter::from_fn(|| rows.part()).collect()
    }

    /// The parts of each row, put together.
    fn whole(parts: Vec<TrajectoryRow>) -> Vec<(TrajectoryRow, Vec<u32>, Vec<i64>)> {
        let mut rows: Vec<(TrajectoryRow, Vec<u32>, Vec<i64>)> = Vec::new();
        let mut open = false;
        for part in parts {
            let span = part.tokens.clone().expect("a part has tokens");
            let ids = span.token_ids.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().expect("four bytes")));
            let versions = span.weight_versions.iter().flat_map(|r| vec![r.version; r.count as usize]);
            let last = part.last;
            if open {
                let row = rows.last_mut().expect("it is open");
                assert_eq!(span.offset as usize, row.1.len());
                let before = row.0.tokens.as_mut().expect("a part has tokens");
                before.loss_mask.extend(&span.loss_mask);
                before.logprobs.extend(&span.logprobs);
                row.1.extend(ids);
                row.2.extend(versions);
                (row.0.reward, row.0.aborted) = (part.reward, part.aborted);
                row.0.finish_reason = part.finish_reason;
            } else {
                assert_eq!(span.offset, 0);
                rows.push((part, ids.collect(), versions.collect()));
            }
            open = !last;
        }
        assert!(!open);
        rows
    }

    #[test]
    fn a_cut_starts_a_row_with_what_was_kept() {
        let mut rows = Rows::default();
        rows.push(&record(1, 0, &[1, 2, 3, 4], &[0, 0, 1, 1], false), Some(0.5), true);
        rows.push(&record(2, 4, &[5, 6], &[0, 1], false), Some(1.0), true);
        assert_eq!(taken(&mut rows), []);
        rows.push(&record(3, 3, &[7], &[1], false), Some(2.0), true);
        let mut parts = taken(&mut rows);
        rows.push(&record(4, 4, &[8, 9], &[1, 1], false), None, false);
        rows.finish();
        parts.extend(taken(&mut rows));
        let rows = whole(parts);
        let of = |n: usize| {
            let (row, ids, versions) = &rows[n];
            let mask = row.tokens.as_ref().expect("a part has tokens").loss_mask.clone();
            (row.segment, row.first_turn, row.last_turn, row.reward, row.aborted, ids.clone(), mask, versions.clone())
        };
        let first = (1, 1, 2, Some(1.0), false, vec![1, 2, 3, 4, 5, 6], vec![0, 0, 1, 1, 0, 1], vec![1, 1, 1, 1, 2, 2]);
        assert_eq!(of(0), first);
        let second =
            (2, 3, 4, Some(2.0), true, vec![1, 2, 3, 7, 8, 9], vec![0, 0, 0, 1, 0, 0], vec![-1, -1, -1, 3, 4, 4]);
        assert_eq!(of(1), second);
        assert_eq!(rows.len(), 2);
        assert_eq!([&rows[0].0.finish_reason, &rows[1].0.finish_reason], ["why 2", "why 4"]);
    }

    #[test]
    fn a_long_row_comes_in_parts() {
        let ids: Vec<u32> = (0..(PART as u32 * 2 + 10)).collect();
        let mut rows = Rows::default();
        rows.push(&record(1, 0, &ids, &[], false), Some(1.0), true);
        rows.finish();
        let parts = taken(&mut rows);
        let contexts: Vec<_> = (0..).map_while(|n| rows.context_part(n)).collect();
        assert_eq!(
            contexts.iter().map(|c| (c.offset, c.token_ids.len())).collect::<Vec<_>>(),
            [(0, PART * 4), (PART as u64, PART * 4), (2 * PART as u64, 40)]
        );
        assert_eq!(parts.len(), 3);
        assert!(parts[..2].iter().all(|p| !p.last && p.reward.is_none() && p.finish_reason.is_empty()));
        let rows = whole(parts);
        assert_eq!(rows[0].1, ids);
        assert_eq!(rows[0].2, vec![1; ids.len()]);
    }

    proptest! {
        /// Each token that a record says is trained on is so in one row, and every row is a prefix of what was kept and
        /// the spans after it.
        #[test]
        fn each_token_is_trained_on_once(
            spans in prop::collection::vec((0u64..12, prop::collection::vec(0u8..2, 0..6), any::<bool>()), 1..20),
        ) {
            let (mut rows, mut parts, mut fold, mut trained) = (Rows::default(), Vec::new(), Vec::new(), 0);
            let mut next = 0;
            for (n, (back, mask, cut)) in spans.iter().enumerate() {
                let offset = (fold.len() as u64).saturating_sub(if *cut { *back } else { 0 });
                let ids: Vec<u32> = mask.iter().map(|_| { next += 1; next }).collect();
                fold.truncate(offset as usize);
                fold.extend(&ids);
                trained += mask.iter().map(|m| *m as usize).sum::<usize>();
                rows.push(&record(n as u32 + 1, offset, &ids, mask, false), Some(1.0), true);
                parts.extend(taken(&mut rows));
            }
            rows.finish();
            parts.extend(taken(&mut rows));
            let rows = whole(parts);
            let mut seen = std::collections::HashSet::new();
            for (row, ids, versions) in &rows {
                let mask = &row.tokens.as_ref().expect("a part has tokens").loss_mask;
                prop_assert_eq!((ids.len(), versions.len()), (mask.len(), mask.len()));
                for (id, _) in ids.iter().zip(mask).filter(|(_, m)| **m == 1) {
                    prop_assert!(seen.insert(*id), "token {id} is trained on twice");
                }
            }
            prop_assert_eq!(seen.len(), trained);
            prop_assert_eq!(rows.last().map(|r| r.1.clone()), Some(fold));
        }
    }
}
