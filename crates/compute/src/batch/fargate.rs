//! The sizes that Fargate has: memory comes in steps that depend on the processors.

/// GiB that every task has without asking.
pub const FREE_STORAGE: u64 = 20;

/// Processors, least and most memory in MB, and the step between.
const SIZES: [(f64, u64, u64, u64); 7] = [
    (0.25, 512, 2048, 512),
    (0.5, 1024, 4096, 1024),
    (1.0, 2048, 8192, 1024),
    (2.0, 4096, 16_384, 1024),
    (4.0, 8192, 30_720, 1024),
    (8.0, 16_384, 61_440, 4096),
    (16.0, 32_768, 122_880, 8192),
];

/// The largest size there is.
pub const LARGEST: (f64, u64) = (16.0, 122_880);

/// The smallest size with at least as many processors that holds so much memory (MB); `None` when
/// there is none. Processors are not raised for memory: they are what costs.
pub fn size(cpu: f64, memory: f64) -> Option<(f64, u64)> {
    let (cpu, least, most, step) = *SIZES.iter().find(|size| size.0 >= cpu)?;
    // 0.25 has 512, 1024 and 2048 only.
    let steps = if cpu == 0.25 { vec![512, 1024, 2048] } else { (least..=most).step_by(step as usize).collect() };
    steps.into_iter().find(|size| *size as f64 >= memory).map(|memory| (cpu, memory))
}

/// Most memory that so many processors can have, in MB.
pub fn most_memory(cpu: f64) -> u64 {
    SIZES.iter().find(|size| size.0 >= cpu).map_or(LARGEST.1, |size| size.2)
}

/// The fewest processors that can have so much memory.
pub fn cpu_for(memory: f64) -> Option<f64> {
    SIZES.iter().find(|size| size.2 as f64 >= memory).map(|size| size.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_get_the_next_size() {
        assert_eq!(size(1.0, 4096.0), Some((1.0, 4096)));
        assert_eq!(size(2.0, 16_000.0), Some((2.0, 16_384)));
        assert_eq!(size(0.1, 1500.0), Some((0.25, 2048)));
        assert_eq!(size(1.5, 100.0), Some((2.0, 4096)));
        assert_eq!(size(8.0, 20_000.0), Some((8.0, 20_480)));
        assert_eq!(size(1.0, 16_000.0), None);
        assert_eq!(size(17.0, 16_000.0), None);
        assert_eq!((most_memory(1.0), cpu_for(16_000.0), cpu_for(200_000.0)), (8192, Some(2.0), None));
    }
}
