//! `roost-protogen DESCRIPTOR_SET OUT_DIR`: one Rust file per package, from a descriptor set that protoc wrote.
//!
//! Maps become `BTreeMap`, so that encoding the same message twice gives the same bytes: the hash chain of a session
//! is taken over encoded messages. `bytes` fields are `Vec<u8>`: the engine decodes from a borrowed slice, where
//! `bytes::Bytes` would copy as well and cost a reference count on top.
use std::{error::Error, path::PathBuf};

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(set), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: roost-protogen DESCRIPTOR_SET OUT_DIR".into());
    };
    let set = FileDescriptorSet::decode(std::fs::read(set)?.as_slice())?;
    prost_build::Config::new()
        .out_dir(out)
        .btree_map(["."])
        .compile_fds(set)?;
    Ok(())
}
