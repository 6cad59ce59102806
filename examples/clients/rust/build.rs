//! Messages and clients from proto/, read by protox: no protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let protos = "../../../proto";
    println!("cargo:rerun-if-changed={protos}");
    let files = ["roost/v1/session_service.proto", "roost/v1/turn_service.proto"];
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .compile_fds(protox::compile(files, [protos])?)?;
    Ok(())
}
