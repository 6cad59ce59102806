//! The checkpoint's tokens: the fold of a session's live COMMITTED records (I7).

use crate::chain::Line;
use crate::gen_store::RecordMeta;
use crate::gen_v1::RecordStatus;

/// Bytes of one token id.
pub const TOKEN: usize = 4;

/// Token ids after the last COMMITTED turn, and where each commit that brought tokens cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// u32 little-endian.
    tokens: Vec<u8>,
    /// head_version and offset of each commit that cut or appended, in order.
    cuts: Vec<(u64, u64)>,
    /// head_version of the last commit that rewound: what a client holds from before it may be of another line.
    rewound: u64,
}

impl Checkpoint {
    /// Length in tokens.
    pub fn len(&self) -> u64 {
        (self.tokens.len() / TOKEN) as u64
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// What it holds in memory.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.tokens.capacity() + self.cuts.capacity() * size_of::<(u64, u64)>()
    }

    /// The commit that made `head_version`: cut to `offset`, then append. `offset` is at most the length.
    pub fn commit(&mut self, head_version: u64, offset: u64, token_ids: &[u8]) {
        if offset == self.len() && token_ids.is_empty() {
            return;
        }
        self.tokens.truncate(offset as usize * TOKEN);
        self.tokens.extend_from_slice(token_ids);
        self.cuts.push((head_version, offset));
    }

    /// As `commit`, by a commit that rewound: `self` is the checkpoint after the turn it was built on.
    pub fn commit_rewound(&mut self, head_version: u64, offset: u64, token_ids: &[u8]) {
        self.rewound = head_version;
        self.commit(head_version, offset, token_ids);
    }

    /// What changed since `known`: the lowest offset that any commit since then cut to, and the tokens after it. The
    /// whole without a known version, with one above `head_version`, or with one from before a rewind.
    pub fn since(&self, known: Option<u64>, head_version: u64) -> (u64, &[u8]) {
        let offset = match known {
            Some(known) if (self.rewound..=head_version).contains(&known) => {
                let later = self.cuts.partition_point(|(version, _)| *version <= known);
                self.cuts[later..].iter().map(|(_, offset)| *offset).min().unwrap_or_else(|| self.len()).min(self.len())
            }
            _ => 0,
        };
        (offset, &self.tokens[offset as usize * TOKEN..])
    }

    /// Folds records as a reload reads them: newest first, with tokens. `up_to`: the last turn to fold.
    pub fn fold(lines: &[Line], metas: &[RecordMeta], up_to: u32) -> Self {
        let mut checkpoint = Checkpoint::default();
        for (line, meta) in lines.iter().zip(metas).rev() {
            if meta.base_turn.is_some() {
                checkpoint.rewound = meta.head_version;
            }
            if line.status != RecordStatus::Committed as i32 || meta.turn > up_to {
                continue;
            }
            let offset = if meta.has_tokens { meta.token_offset } else { checkpoint.len() };
            checkpoint.commit(meta.head_version, offset, line.tokens.as_deref().unwrap_or_default());
        }
        checkpoint.tokens.shrink_to_fit();
        checkpoint.cuts.shrink_to_fit();
        checkpoint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A commit: how many turns it goes back, its offset, its tokens.
    type Commit = (usize, u64, Vec<u32>);

    fn commits() -> impl Strategy<Value = Vec<Commit>> {
        let rewind = prop_oneof![4 => Just(0usize), 1 => 1usize..4];
        prop::collection::vec((rewind, 0u64..40, prop::collection::vec(any::<u32>(), 0..20)), 0..30)
    }

    proptest! {
        /// I7: whatever version the client holds, what it is given completes it to the whole, over rewinds too.
        #[test]
        fn a_delta_completes_what_the_client_holds(commits in commits(), known in 0usize..30) {
            let mut line = vec![Checkpoint::default()];
            let mut held = Vec::new();
            for (i, (back, offset, ids)) in commits.iter().enumerate() {
                if i == known {
                    held.clone_from(&line.last().expect("never empty").tokens);
                }
                let base = line.len() - 1 - (*back).min(line.len() - 1);
                let rewinds = base + 1 < line.len();
                let rewound = line.last().expect("never empty").rewound;
                line.truncate(base + 1);
                let mut next = line[base].clone();
                next.rewound = rewound;
                let bytes: Vec<u8> = ids.iter().flat_map(|t| t.to_le_bytes()).collect();
                let (version, offset) = (i as u64 + 1, (*offset).min(next.len()));
                if rewinds {
                    next.commit_rewound(version, offset, &bytes);
                } else {
                    next.commit(version, offset, &bytes);
                }
                line.push(next);
            }
            let whole = line.last().expect("never empty");
            if known >= commits.len() {
                held.clone_from(&whole.tokens);
            }
            let (offset, tail) = whole.since(Some(known.min(commits.len()) as u64), commits.len() as u64);
            held.truncate(offset as usize * TOKEN);
            held.extend_from_slice(tail);
            prop_assert_eq!(&held, &whole.tokens);
        }
    }
}
