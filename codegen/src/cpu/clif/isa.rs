//! The instruction set of this machine, as Cranelift sees it.

use crate::cpu::CodegenError;
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};

/// x86-64 features without which Cranelift would call out to a library: refused, because code has no relocations.
const REQUIRED_X86: [&str; 5] = ["has_ssse3", "has_sse41", "has_popcnt", "has_avx", "has_fma"];

/// The host's instruction set with every detected feature.
///
/// # Errors
/// If Cranelift does not know the host, or the host lacks FMA, AVX or SSE4.1.
pub fn host() -> Result<OwnedTargetIsa, CodegenError> {
    let mut flags = settings::builder();
    // Our own loop IR has shared and hoisted already. Cranelift's mid-end would sink the multiply-adds of a micro-kernel to
    // their last use and spill the operands, which halves its speed.
    let set = [
        ("opt_level", "none"),
        ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
        ("is_pic", "true"),
        ("unwind_info", "false"),
        ("preserve_frame_pointers", "false"),
        ("enable_alias_analysis", "false"),
    ];
    for (name, value) in set {
        flags.set(name, value).map_err(|e| CodegenError::Host { reason: format!("setting {name}: {e}") })?;
    }
    let builder = cranelift_native::builder().map_err(|e| CodegenError::Host { reason: e.to_owned() })?;
    let isa = builder.finish(settings::Flags::new(flags)).map_err(|e| CodegenError::Host { reason: e.to_string() })?;
    if cfg!(target_arch = "x86_64") {
        for feature in REQUIRED_X86 {
            let present = isa.isa_flags().iter().any(|f| f.name == feature && f.as_bool() == Some(true));
            if !present {
                return Err(CodegenError::MissingFeature { feature: &feature[4..] });
            }
        }
    }
    Ok(isa)
}

/// One line that identifies the host's instruction set: part of the key under which compiled code is cached.
///
/// # Errors
/// As `host`.
pub fn host_fingerprint() -> Result<String, CodegenError> {
    let isa = host()?;
    let on: Vec<&str> = isa.isa_flags().iter().filter(|f| f.as_bool() == Some(true)).map(|f| f.name).collect();
    Ok(format!("{} {}", isa.triple(), on.join(",")))
}
