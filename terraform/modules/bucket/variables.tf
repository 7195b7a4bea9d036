variable "bucket" {
  description = "The bucket's name."
  type        = string
}

variable "prefix" {
  description = "What [store] url names behind the bucket, without a slash at its ends; empty for none."
  type        = string
  default     = ""

  validation {
    condition     = !startswith(var.prefix, "/") && !endswith(var.prefix, "/")
    error_message = "The prefix begins and ends without a slash."
  }
}

variable "shards" {
  description = "The shards for which transition and segments_expire_days hold."
  type        = set(string)
  default     = []
}

variable "object_lock" {
  description = "Object Lock, {mode, days}: with days the default retention of every new version, without (days = null) the agents lock what they write, for as long as they are told to. null: no Object Lock. It can be switched on only when the bucket is made. GOVERNANCE can be lifted by who may bypass it; COMPLIANCE by nobody, the account's root included."
  type        = object({ mode = optional(string, "GOVERNANCE"), days = optional(number) })
  default     = null

  validation {
    condition     = var.object_lock == null ? true : contains(["COMPLIANCE", "GOVERNANCE"], var.object_lock.mode) && coalesce(var.object_lock.days, 1) >= 1
    error_message = "The mode is GOVERNANCE or COMPLIANCE, and days at least 1."
  }
}

variable "noncurrent_days" {
  description = "So long a version stays that was deleted or replaced: the time to notice a wrong deletion."
  type        = number
  default     = 14

  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "At least one day."
  }
}

variable "abort_uploads_days" {
  description = "So old an unfinished upload is removed. Longer than the longest upload of a snapshot."
  type        = number
  default     = 3

  validation {
    condition     = var.abort_uploads_days >= 1
    error_message = "At least one day."
  }
}

variable "transition" {
  description = "Sealed binlogs and snapshots of shards move to this storage class after so many days, {days, storage_class}; null: never. Only classes that are read at once: a recovery waits for no thawing."
  type        = object({ days = number, storage_class = string })
  default     = null

  validation {
    condition = var.transition == null ? true : (
      contains(["GLACIER_IR", "INTELLIGENT_TIERING", "STANDARD_IA"], var.transition.storage_class) &&
      (var.transition.storage_class != "STANDARD_IA" || var.transition.days >= 30)
    )
    error_message = "The storage class is GLACIER_IR, INTELLIGENT_TIERING, or STANDARD_IA after at least 30 days."
  }
}

variable "segments_expire_days" {
  description = "Segments of shards go when they are so old, whether or not their binlog was sealed; null: never, prune deletes them. Only for servers whose binlogs rotate much more often than this."
  type        = number
  default     = null

  validation {
    condition     = var.segments_expire_days == null ? true : var.segments_expire_days >= 30
    error_message = "At least 30 days: the live binlog of a quiet server has nothing but its segments."
  }
}

variable "accept_replicas" {
  description = "False closes the bucket to replication from the other region: the fence of a failover."
  type        = bool
  default     = true
}

variable "access_log_bucket" {
  description = "A bucket of this region for S3's access logs; null: none."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of the bucket and its key."
  type        = map(string)
  default     = {}
}
