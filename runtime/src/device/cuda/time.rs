//! How long the GPU takes, by its own clock.

use super::Shared;
use cudarc::driver::{CudaEvent, DriverError, sys};
use std::time::Duration;

/// Written between two timed launches, larger than the L2 cache of any GPU so far.
const FLUSH_BYTES: usize = 256 << 20;

/// Copied to measure memory bandwidth, so much more than the L2 cache that the cache does not matter.
const COPY_BYTES: usize = 1 << 30;

const EVENT: Option<sys::CUevent_flags> = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);

fn elapsed(events: &[(CudaEvent, CudaEvent)]) -> Result<Vec<Duration>, DriverError> {
    events.iter().map(|(a, b)| Ok(Duration::from_secs_f32(a.elapsed_ms(b)? / 1e3))).collect()
}

/// Queues what `enqueue` queues `repeats` times, each time with a cold L2 cache, and returns what each took.
pub(super) fn launches(
    shared: &Shared,
    repeats: usize,
    mut enqueue: impl FnMut() -> Result<(), DriverError>,
) -> Result<Vec<Duration>, DriverError> {
    let mut flush = shared.stream.alloc_zeros::<u8>(FLUSH_BYTES)?;
    let mut events = Vec::new();
    for _ in 0..repeats {
        shared.stream.memset_zeros(&mut flush)?;
        let start = shared.stream.record_event(EVENT)?;
        enqueue()?;
        events.push((start, shared.stream.record_event(EVENT)?));
    }
    shared.stream.synchronize()?;
    elapsed(&events)
}

/// The median of a few copies, each with a cold L2 cache, that read and write `bytes` in all.
pub(super) fn copy_time(shared: &Shared, bytes: usize) -> Result<Duration, DriverError> {
    const COPIES: usize = 11;
    let stream = &shared.stream;
    let source = stream.alloc_zeros::<u8>((bytes / 2).max(1))?;
    let mut target = stream.alloc_zeros::<u8>((bytes / 2).max(1))?;
    let mut times = launches(shared, COPIES, || stream.memcpy_dtod(&source, &mut target))?;
    times.sort_unstable();
    Ok(times[COPIES / 2])
}

/// The median of a few copies between two buffers that no cache holds, in bytes read and written a second.
pub(super) fn copy_rate(shared: &Shared) -> Result<f64, DriverError> {
    const COPIES: usize = 11;
    let (free, _) = shared.context.mem_get_info()?;
    let bytes = COPY_BYTES.min(free / 4);
    let stream = &shared.stream;
    let source = stream.alloc_zeros::<u8>(bytes)?;
    let mut target = stream.alloc_zeros::<u8>(bytes)?;
    let mut events = Vec::new();
    // The first is a warm-up.
    for _ in 0..=COPIES {
        let start = stream.record_event(EVENT)?;
        stream.memcpy_dtod(&source, &mut target)?;
        events.push((start, stream.record_event(EVENT)?));
    }
    stream.synchronize()?;
    let mut times = elapsed(&events[1..])?;
    times.sort_unstable();
    Ok(2.0 * bytes as f64 / times[COPIES / 2].as_secs_f64())
}
