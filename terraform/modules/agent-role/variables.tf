variable "name" {
  description = "The name of the role and of its instance profile."
  type        = string
}

variable "shard" {
  description = "The shard that it works for: the first part of its keys, and the value of the tag mysql-pitr:shard."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9_-][A-Za-z0-9._-]*$", var.shard))
    error_message = "A shard's name consists of letters, digits, dots, underscores and hyphens, and does not begin with a dot."
  }
}

variable "bucket_arn" {
  description = "The bucket that it writes to."
  type        = string
}

variable "prefix" {
  description = "What [store] url names behind the bucket, without a slash at its ends; empty for none."
  type        = string
  default     = ""
}

variable "kms_key_arn" {
  description = "The key of that bucket."
  type        = string
}

variable "replica" {
  description = "The other region's bucket, {bucket_arn, kms_key_arn, written_by_agent, fenced}: watched; with written_by_agent written, too; with fenced a take-over can fence it. null: none."
  type = object({
    bucket_arn       = string
    kms_key_arn      = string
    written_by_agent = optional(bool, false)
    fenced           = optional(bool, false)
  })
  default = null
}

variable "object_lock_days" {
  description = "So long at most the agent may lock what it writes; null: it sets no locks, the bucket has a default retention or none."
  type        = number
  default     = null
}

variable "ebs" {
  description = "For EBS snapshots, {home_region, dr_region, kms_key_arns, undo}: where the volumes are, where copies go (null: no copies), the keys of the volumes and of the copies (none where neither is encrypted), and whether unfinished snapshots may be deleted. null: no EBS snapshots."
  type = object({
    home_region  = string
    dr_region    = optional(string)
    kms_key_arns = optional(list(string), [])
    undo         = optional(bool, true)
  })
  default = null
}

variable "tags" {
  description = "Tags of the role and its profile."
  type        = map(string)
  default     = {}
}
