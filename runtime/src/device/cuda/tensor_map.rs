//! Tensor maps as the driver encodes them for the hardware.

use super::error::describe;
use crate::device::ptx_args::MapTensor;
use cudarc::driver::sys;
use std::ptr;
use zellige_codegen::ptx::MapSpec;
use zellige_ir::DType;

/// The driver's tensor map.
pub(super) fn encode(spec: &MapSpec, tensor: &MapTensor) -> Result<[u8; 128], String> {
    use sys::CUtensorMapDataType_enum as Elem;
    use sys::CUtensorMapSwizzle_enum as Swizzle;
    let elem = match spec.dtype {
        DType::BF16 => Elem::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => Elem::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::F32 if spec.tf32 => Elem::CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
        DType::F32 => Elem::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::F8E4M3 | DType::F8E5M2 | DType::F4E2M1 => Elem::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        dtype => return Err(format!("no tensor map of {dtype}")),
    };
    let swizzle = match spec.swizzle {
        0 => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        bytes => return Err(format!("no swizzle of {bytes} bytes")),
    };
    let steps = vec![1u32; tensor.size.len()];
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: the arrays have as many entries as the rank says (one fewer for the strides) and outlive the call, which only
    // writes the map. The address is not accessed.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut map,
            elem,
            tensor.size.len() as u32,
            ptr::with_exposed_provenance_mut(tensor.address as usize),
            tensor.size.as_ptr(),
            tensor.stride.as_ptr(),
            spec.tile.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    status.result().map_err(describe)?;
    let mut bytes = [0; 128];
    for (at, word) in map.opaque.iter().enumerate() {
        bytes[8 * at..8 * at + 8].copy_from_slice(&word.to_ne_bytes());
    }
    Ok(bytes)
}
