//! The engine's tests, in one program because linking one takes long: each module says in its first lines what it is for.
//! Loom's and shuttle's models are programs of their own, since they are built with other primitives.
#![cfg(not(any(feature = "shuttle", roost_loom)))]

mod addresses;
mod endings;
mod fork;
mod full_gates;
mod key_lives;
mod keyring;
mod late_disk;
mod mail;
mod measures;
mod model_residency;
mod model_slots;
mod resources;
mod scenarios;
mod set_limits;
mod sim;
mod simulation;
mod stress;
mod threads;
mod watching;
