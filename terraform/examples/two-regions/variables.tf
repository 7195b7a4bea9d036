variable "name" {
  description = "What the names of buckets and roles begin with."
  type        = string
  default     = "example-mysql-pitr"
}

variable "shard" {
  description = "The shard."
  type        = string
  default     = "shop"
}

variable "home_region" {
  description = "Where the database is."
  type        = string
  default     = "eu-west-1"
}

variable "dr_region" {
  description = "Where the copies are."
  type        = string
  default     = "eu-central-1"
}

variable "volume_kms_key_arns" {
  description = "The keys of the database nodes' EBS volumes; empty where they are not encrypted."
  type        = list(string)
  default     = []
}

variable "replication_enabled" {
  description = "False stops S3's copying at home."
  type        = bool
  default     = true
}

variable "accept_replicas" {
  description = "False closes the DR bucket to copies from home: the fence of a failover."
  type        = bool
  default     = true
}

variable "return_enabled" {
  description = "True lets S3 copy from the DR region to home, to come back after a failover."
  type        = bool
  default     = false
}
