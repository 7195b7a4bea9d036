variable "home_bucket" {
  description = "The name of the bucket in the home region."
  type        = string
}

variable "dr_bucket" {
  description = "The name of the bucket in the DR region."
  type        = string
}

variable "prefix" {
  description = "What [store] url names behind the bucket, without a slash at its ends; empty for none. The same in both."
  type        = string
  default     = ""
}

variable "shards" {
  description = "The shards for which transitions and segments_expire_days hold."
  type        = set(string)
  default     = []
}

variable "object_lock" {
  description = "Object Lock of both buckets, {mode, days}: with days the default retention of every new version, without the agents lock what they write. null: none. Only when the buckets are made."
  type        = object({ mode = optional(string, "GOVERNANCE"), days = optional(number) })
  default     = null
}

variable "noncurrent_days" {
  description = "So long a version stays that was deleted or replaced."
  type        = number
  default     = 14
}

variable "abort_uploads_days" {
  description = "So old an unfinished upload is removed."
  type        = number
  default     = 3
}

variable "home_transition" {
  description = "At home, sealed binlogs and snapshots move to this storage class after so many days, {days, storage_class}; null: never."
  type        = object({ days = number, storage_class = string })
  default     = null
}

variable "dr_transition" {
  description = "The same in the DR region."
  type        = object({ days = number, storage_class = string })
  default     = null
}

variable "dr_storage_class" {
  description = "The storage class that copies are made in. Segments are small and short-lived: classes with a least size or a least time cost more for them."
  type        = string
  default     = "STANDARD"

  validation {
    condition     = contains(["INTELLIGENT_TIERING", "STANDARD"], var.dr_storage_class)
    error_message = "The storage class is STANDARD or INTELLIGENT_TIERING; let a transition move what grows old."
  }
}

variable "segments_expire_days" {
  description = "Segments go when they are so old, whether or not their binlog was sealed; null: never, prune deletes them."
  type        = number
  default     = null
}

variable "replication_enabled" {
  description = "False stops S3's copying at home. For failing over, see accept_replicas, which needs the DR region only."
  type        = bool
  default     = true
}

variable "return_enabled" {
  description = "True lets S3 copy from the DR region to home: after a failover, to come back. What was written before it was switched on needs S3 Batch Replication."
  type        = bool
  default     = false
}

variable "accept_replicas" {
  description = "False closes the DR bucket to copies from home: the fence of a failover."
  type        = bool
  default     = true
}

variable "home_access_log_bucket" {
  description = "A bucket of the home region for S3's access logs; null: none."
  type        = string
  default     = null
}

variable "dr_access_log_bucket" {
  description = "A bucket of the DR region for S3's access logs; null: none."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of everything that is made."
  type        = map(string)
  default     = {}
}
