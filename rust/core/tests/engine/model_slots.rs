//! Guards I2 (no admission above a cap), I22 (a refusal changes nothing) and the release half of I1: the slot counters
//! against three plain integers.
use proptest::prelude::*;
use roost_core::slots::{NO_LIMIT, Refused, SlotNode, reserve};

#[derive(Debug, Clone)]
enum Op {
    /// A chain over the levels from this one on, with its weights.
    Reserve(usize, [u32; 3]),
    Release(usize),
    SetCap(usize, u32),
    ForceAdd(usize, u32),
}

fn weight() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..4u32, 1 => Just(u32::MAX), 1 => Just(u32::MAX - 1)]
}

fn op() -> impl Strategy<Value = Op> {
    let cap = prop_oneof![4 => 0..8u32, 1 => Just(0), 1 => Just(NO_LIMIT)];
    prop_oneof![
        6 => (0..3usize, [weight(), weight(), weight()]).prop_map(|(from, n)| Op::Reserve(from, n)),
        5 => any::<usize>().prop_map(Op::Release),
        2 => (0..3usize, cap).prop_map(|(level, cap)| Op::SetCap(level, cap)),
        1 => (0..3usize, weight()).prop_map(|(level, n)| Op::ForceAdd(level, n)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn counters_follow_the_model(caps in [0..6u32, 0..6u32, 0..6u32], ops in prop::collection::vec(op(), 1..80)) {
        let nodes: Vec<SlotNode> = caps.iter().map(|cap| SlotNode::new(*cap)).collect();
        let mut model: Vec<(u64, u64)> = caps.iter().map(|cap| (u64::from(*cap), 0)).collect();
        let mut held: Vec<Vec<(usize, u32)>> = Vec::new();
        for op in ops {
            match op {
                Op::Reserve(from, n) => {
                    let chain: Vec<(usize, u32)> = (from..3).map(|level| (level, n[level])).collect();
                    let levels: Vec<(&SlotNode, u32)> = chain.iter().map(|(level, n)| (&nodes[*level], *n)).collect();
                    let refusing = chain.iter().position(|(level, n)| {
                        let (cap, used) = model[*level];
                        used + u64::from(*n) > cap
                    });
                    if let Some(level) = refusing {
                        // Alone, the first look always finds the level: nothing was taken, nobody need be woken.
                        prop_assert_eq!(reserve(&levels), Err(Refused { level, given_back: 0 }));
                    } else {
                        prop_assert_eq!(reserve(&levels), Ok(()));
                        chain.iter().for_each(|(level, n)| model[*level].1 += u64::from(*n));
                        held.push(chain);
                    }
                }
                Op::Release(at) if !held.is_empty() => {
                    for (level, n) in held.swap_remove(at % held.len()) {
                        prop_assert!(nodes[level].release(n));
                        model[level].1 -= u64::from(n);
                    }
                }
                Op::Release(_) => {}
                Op::SetCap(level, cap) => {
                    nodes[level].set_cap(cap);
                    model[level].0 = u64::from(cap);
                }
                Op::ForceAdd(level, n) => {
                    let fits = u32::try_from(model[level].1 + u64::from(n)).is_ok();
                    prop_assert_eq!(nodes[level].force_add(n).is_ok(), fits);
                    if fits {
                        model[level].1 += u64::from(n);
                        held.push(vec![(level, n)]);
                    }
                }
            }
            for (node, (cap, used)) in nodes.iter().zip(&model) {
                prop_assert_eq!((u64::from(node.cap()), u64::from(node.used())), (*cap, *used));
                prop_assert_eq!(node.has_room(1), used < cap);
            }
        }
        for (level, n) in held.into_iter().flatten() {
            nodes[level].release(n);
        }
        prop_assert!(nodes.iter().all(|node| node.used() == 0));
    }
}

#[test]
fn cap_zero_pauses_and_a_lowered_cap_ends_nothing() {
    let node = SlotNode::new(2);
    assert_eq!(reserve(&[(&node, 2)]), Ok(()));
    node.set_cap(0);
    assert_eq!(node.cap_used(), (0, 2));
    assert!(node.release(1));
    assert_eq!(reserve(&[(&node, 1)]), Err(Refused { level: 0, given_back: 0 }));
    node.set_cap(2);
    assert_eq!(reserve(&[(&node, 1)]), Ok(()));
}

#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "not held"))]
fn releasing_what_is_not_held_is_loud_and_stops_at_zero() {
    let node = SlotNode::new(1);
    assert!(!node.release(1));
    assert_eq!(node.used(), 0);
}
